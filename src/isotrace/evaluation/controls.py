"""Controls: what a dictionary is worth beside features that nobody trained, at the same number active per token.

Each is an ordinary dictionary on the layers and the output hookpoint of the one it stands beside, with TopK at that
one's mean L0, rounded. They are fitted on a sample of sequences of their own.

    random      unit-norm random directions read the same input; their decoder is the ridge solution
    pca         ± principal components of the output, read from the output itself as an autoencoder does
    neurons     the subject's own MLP neurons, those whose write is longest (|activation| · ‖W_out row‖) kept
    shuffled    the dictionary with its decoder rows permuted among the features of a layer
"""

import copy
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse
import torch
from torch import Tensor

from isotrace.activations.harvest import Corpus, Plan, mask_some, record
from isotrace.base.settings import child_seed
from isotrace.dictionaries.architectures.pca import PrincipalComponents
from isotrace.dictionaries.build import configure
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.registry import ARCHITECTURES
from isotrace.dictionaries.sparsity.rule import SparseActivations
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Batch, Subject

FITTING_TOKENS = 20_000
RANDOM_FEATURES = 4_096  # the ridge solution costs F³: more features than this would take minutes per layer
RIDGE = 0.1  # relative to the mean squared activation of a feature; 0.01 and 1 did worse on 2,700 and 6,600 tokens
TOGETHER = 4_096  # tokens that are encoded at once
NAMES = ("random", "pca", "neurons", "shuffled")


@dataclass(frozen=True)
class Control:
    """`dictionary` is None where the control does not apply, and `reason` then says why."""

    name: str
    dictionary: Dictionary | None
    reason: str | None = None


@dataclass(frozen=True)
class Sample:
    """Masked batches to fit controls on, as the subject will be evaluated."""

    subject: Subject
    batches: tuple[Batch, ...]

    @classmethod
    def of(cls, subject: Subject, corpus: Corpus, *, mask_rate: float, seed: int) -> "Sample":
        """Batches of `corpus` until they hold FITTING_TOKENS tokens, or all of it."""
        batches, count = [], 0
        for number, rows in enumerate(Plan(corpus.lengths, 4_096, seed).epoch(0)):
            generator = torch.Generator().manual_seed(child_seed(seed, number))
            whole = corpus.batch(rows).to(subject.device)
            batches.append(mask_some(subject, whole, mask_rate, generator)[0])
            count += batches[-1].ids.numel()
            if count >= FITTING_TOKENS:
                break
        return cls(subject, tuple(batches))

    @property
    def n_sequences(self) -> int:
        return sum(len(batch.ids) for batch in self.batches)

    @property
    def n_tokens(self) -> int:
        return sum(batch.ids.numel() for batch in self.batches)

    def at(self, *hookpoints: str) -> list[Tensor]:
        """Activations `[tokens, d]` at each hookpoint, in the same order of tokens."""
        found: dict[str, list[Tensor]] = {site: [] for site in hookpoints}
        sites = list(found)
        for batch in self.batches:
            record(self.subject, batch, sites, lambda i, x: found[sites[i]].append(x.flatten(0, 1).clone()))
        return [torch.cat(found[site]) for site in hookpoints]


@torch.no_grad()
def make_controls(dictionary: Dictionary, sample: Sample, seed: int) -> list[Control]:
    """All controls of `dictionary`, in the order of NAMES; the same seed gives the same ones."""
    k = mean_l0(dictionary, sample)
    config = dictionary.config
    found = [
        Control("random", random_features(dictionary, sample, k, seed)),
        Control("pca", principal_components(dictionary, sample, k)),
    ]
    sizes = {len(sample.subject.neuron_writes(layer)[0]) for layer in config.layers}
    if config.hookpoint_out == "layers.{}.mlp_out" and len(sizes) == 1:
        found.append(Control("neurons", neurons(sample.subject, config.layers, k)))
    else:
        reason = f"not applicable: neurons write to mlp_out, the dictionary to {config.hookpoint_out}"
        if len(sizes) > 1:
            reason = f"not applicable: layers have {min(sizes)} and {max(sizes)} neurons"
        found.append(Control("neurons", None, reason))
    return [*found, Control("shuffled", shuffled(dictionary, seed))]


@torch.no_grad()
def mean_l0(dictionary: Dictionary, sample: Sample) -> int:
    """Mean number of active features per token and layer, rounded, at least 1."""
    active = 0
    for layer, site in enumerate(dictionary.config.reads):
        parts = sample.at(site)[0].split(TOGETHER)
        active += sum(int((dictionary.encode(layer, tokens).values > 0).sum()) for tokens in parts)
    rows = sample.n_sequences if is_pooled(dictionary.config.reads) else sample.n_tokens
    return max(1, round(active / (rows * dictionary.config.n_layers)))


@torch.no_grad()
def random_directions(
    subject: Subject, dictionary: Dictionary, means: Tensor, n_features: int, k: int, seed: int
) -> Dictionary:
    """Random unit vectors along which the input of `dictionary` is read, less `means [layers, d_in]`; the `k` largest
    are active, and nothing is written."""
    config = dictionary.config
    made = _empty(
        subject, "sae" if config.hookpoint_in == config.hookpoint_out else "transcoder", config.layers,
        config.hookpoint_in, config.hookpoint_out, config.d_in, config.d_out, n_features, k,
    )  # fmt: skip
    Dictionary.initialise(made, torch.Generator().manual_seed(seed))
    for layer, mean in enumerate(means):
        made.b_enc[layer].copy_(-mean @ made.W_enc[layer])
    return made


def random_features(dictionary: Dictionary, sample: Sample, k: int, seed: int) -> Dictionary:
    """Random features with a fitted readout: as many as `dictionary` has, RANDOM_FEATURES at most.

    Features of a layer read its input minus the sample's mean along random unit vectors, and write to that layer
    only. Decoder and bias minimise ‖y − a W − b‖² + λ‖W‖² with λ = RIDGE · tokens · mean a², in closed form.
    """
    config = dictionary.config
    means = torch.stack([sample.at(read)[0].mean(0) for read in config.reads])
    made = random_directions(sample.subject, dictionary, means, min(config.n_features, RANDOM_FEATURES), k, seed)
    for layer, (read, write) in enumerate(zip(config.reads, config.writes, strict=True)):
        x, y = sample.at(read, write)
        weight, bias = ridge(made.encode(layer, x), y, made.config.n_features)
        made.W_dec[layer].copy_(weight)
        made.b_dec[layer].copy_(bias)
    return made


def ridge(active: SparseActivations, y: Tensor, n_features: int) -> tuple[Tensor, Tensor]:
    """(W `[F, d_out]`, b `[d_out]`) float64 of the ridge regression of y `[tokens, d_out]` on sparse activations
    `[tokens, k]`; the bias is not penalised."""
    n = len(y)
    rows = np.repeat(np.arange(n), active.values.shape[1])
    values, columns = (t.double().flatten().cpu().numpy() for t in (active.values, active.indices))
    a = scipy.sparse.csr_array((values, (rows, columns.astype(np.int64))), shape=(n, n_features))
    target = y.double().cpu().numpy()
    mean_a, mean_y = np.asarray(a.mean(0)).ravel(), target.mean(0)
    gram = (a.T @ a).toarray()
    strength = RIDGE * max(float(np.trace(gram)) / n_features, np.finfo(np.float64).tiny / RIDGE)
    gram += strength * np.eye(n_features) - n * np.outer(mean_a, mean_a)
    weight = scipy.linalg.solve(gram, a.T @ target - n * np.outer(mean_a, mean_y), assume_a="pos")
    return torch.from_numpy(weight), torch.from_numpy(mean_y - mean_a @ weight)


def principal_components(dictionary: Dictionary, sample: Sample, k: int) -> Dictionary:
    """± every principal component of the output, see `architectures.pca`. Reads what it writes, so teacher-forced it
    sees the answer."""
    config = dictionary.config
    d = config.d_out
    made = _empty(sample.subject, "pca", config.layers, config.hookpoint_out, config.hookpoint_out, d, d, 2 * d, k)
    assert isinstance(made, PrincipalComponents)
    for layer, site in enumerate(config.writes):
        made.place(layer, sample.at(site)[0])
    return made


def neurons(subject: Subject, layers: tuple[int, ...], k: int) -> Dictionary:
    """The MLP's neurons as features: the k per token that write most, |activation| · ‖W_out row‖.

    A neuron's activation can be negative, so each is a feature twice, with either sign. Encoders are scaled by the
    norm of the row and decoders by its inverse, which leaves what is written alone and makes TopK choose by it.
    Exact from k = d_ff on.
    """
    writes = [subject.neuron_writes(layer) for layer in layers]
    d_ff, d = writes[0][0].shape
    made = _empty(subject, "transcoder", layers, "layers.{}.neuron", "layers.{}.mlp_out", d_ff, d, 2 * d_ff, k)
    for layer, (rows, bias) in enumerate(writes):
        norms = rows.norm(dim=1)
        norms = torch.where(norms > 0, norms, 1.0)  # a neuron that writes nothing may be chosen, and writes nothing
        made.W_enc[layer].copy_(torch.cat([norms.diag(), -norms.diag()], 1))
        made.W_dec[layer].copy_(torch.cat([rows, -rows]) / norms.repeat(2)[:, None])
        if bias is not None:
            made.b_dec[layer].copy_(bias)
    return made


def shuffled(dictionary: Dictionary, seed: int) -> Dictionary:
    """One whose decoder rows are permuted among the features of each layer: what is active stays, what it writes is
    another feature's. Active features are renamed for that, since permuted decoders would be as large again; all its
    other tensors are those of `dictionary`."""
    shared, generator = dictionary.state_dict(keep_vars=True).values(), torch.Generator().manual_seed(seed)
    made = copy.deepcopy(dictionary, {id(tensor): tensor for tensor in shared})
    orders = torch.stack([torch.randperm(len(weight), generator=generator) for weight in dictionary.W_dec])
    made.register_buffer("order", orders := orders.to(dictionary.W_dec[0].device))  # by which it is another dictionary
    encode = dictionary.encode

    def renamed(layer: int, x: Tensor) -> SparseActivations:
        active = encode(layer, x)
        return SparseActivations(orders[layer][active.indices.long()], active.values)

    made.encode = renamed
    return made


def _empty(
    subject: Subject, name: str, layers: tuple[int, ...], reads: str, writes: str, d_in: int, d_out: int, n: int, k: int
) -> Dictionary:
    config = configure(
        subject, name, layers=layers, hookpoint_in=reads, hookpoint_out=writes, d_in=d_in, d_out=d_out,
        n_features=n, k=min(k, n),
    )  # fmt: skip
    return ARCHITECTURES[name](config).eval().requires_grad_(False).to(subject.device)
