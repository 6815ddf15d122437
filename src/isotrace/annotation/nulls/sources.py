"""Where features come from: the dictionary, and the nulls that stand beside it.

    dictionary       its features, at the hookpoint it reads
    neurons          the subject's own MLP neurons of the same layers, where positive; of a pooled vector its
                     coordinates, with either sign
    untrained        a dictionary of the same shape, trained in the same way on the subject with random weights
    random           unit-norm random directions of the same input, TopK at the dictionary's mean L0
    token_identity   one feature per vocabulary entry: what the spelling of a token alone tells; of whole sequences how
                     often each token is in them

Activations go to disk in chunks, one file each, so that a run that was stopped goes on behind the last chunk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from isotrace.activations.harvest import record
from isotrace.datasets.annotated import Data
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import batches_of
from isotrace.domains.domain import Reading
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Batch, Subject

NAMES = ("dictionary", "neurons", "untrained", "random", "token_identity")
CHUNK_TOKENS = 16_384
BATCH_TOKENS = 2_048


@dataclass(frozen=True)
class Site:
    """Features of one layer of one source: `encode` maps activations at `hookpoint` `[tokens, d]` to rows, columns
    and values of what is positive."""

    source: str
    layer: int
    hookpoint: str
    n_features: int
    encode: Callable[[Tensor], tuple[np.ndarray, np.ndarray, np.ndarray]]

    @property
    def key(self) -> str:
        return f"{self.source}.{self.layer}"


def dictionary_sites(name: str, dictionary: Dictionary) -> list[Site]:
    config = dictionary.config

    def encoder(place: int):
        def encode(x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            found = dictionary.encode(place, x)
            on = found.values > 0
            rows = torch.arange(len(x), device=on.device)[:, None].expand_as(found.indices)[on]
            return rows.cpu().numpy(), found.indices[on].cpu().numpy(), found.values[on].float().cpu().numpy()

        return encode

    places = enumerate(zip(config.layers, config.reads, strict=True))
    return [Site(name, layer, read, config.n_features, encoder(i)) for i, (layer, read) in places]


def neuron_sites(subject: Subject, layers: Sequence[int]) -> list[Site]:
    def encode(x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, columns = (x > 0).nonzero(as_tuple=True)
        return rows.cpu().numpy(), columns.cpu().numpy(), x[rows, columns].float().cpu().numpy()

    sites = []
    for layer in layers:
        module, _ = subject.hookpoint(f"layers.{layer}.neuron")
        weight = module.weight
        n_features = getattr(module, "in_features", weight.shape[0] if isinstance(weight, Tensor) else 0)
        sites.append(Site("neurons", layer, f"layers.{layer}.neuron", int(n_features), encode))
    return sites


def coordinate_sites(dictionary: Dictionary) -> list[Site]:
    """The coordinates of the vectors that `dictionary` reads, each once as it is and once negated."""

    def encode(x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        both = torch.cat([x, -x], 1)
        rows, columns = (both > 0).nonzero(as_tuple=True)
        return rows.cpu().numpy(), columns.cpu().numpy(), both[rows, columns].float().cpu().numpy()

    config = dictionary.config
    places = zip(config.layers, config.reads, strict=True)
    return [Site("neurons", layer, read, 2 * config.d_in, encode) for layer, read in places]


def rows_of(batch: Batch, hookpoints: Sequence[str]) -> int:
    """Rows that hookpoints have on an unpadded batch: its tokens, or its sequences where those are pooled."""
    return len(batch.ids) if is_pooled(hookpoints) else batch.ids.numel()


def input_means(subject: Subject, dictionary: Dictionary, data: Data) -> Tensor:
    """float32 `[layers, d_in]` on the CPU: what `dictionary` reads, over some of the sequences."""
    config = dictionary.config
    totals, count = torch.zeros(config.n_layers, config.d_in), 0
    for _, batch in data.batches(BATCH_TOKENS):

        def take(i: int, x: Tensor) -> None:
            totals[i] += x.flatten(0, 1).sum(0).cpu()

        record(subject, batch.to(subject.device), config.reads, take)
        count += rows_of(batch, config.reads)
        if count > 20_000:
            break
    return totals / max(count, 1)


def untrained_subject(subject: Subject, seed: int) -> Subject:
    """The same architecture and tokenizer with freshly initialised weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(subject.model)(subject.model.config)
    model.to(subject.device)  # pyright: ignore[reportArgumentType]
    files = replace(subject.files, source=f"untrained copy of {subject.source}", weights_sha256=f"untrained-{seed}")
    return Subject(model, subject.tokenizer, files, subject.has_head)


def chunks(data: Data) -> list[list[Batch]]:
    """All sequences, CHUNK_TOKENS tokens or a little more together."""
    found: list[list[Batch]] = [[]]
    for _, batch in data.batches(BATCH_TOKENS):
        if sum(b.ids.numel() for b in found[-1]) >= CHUNK_TOKENS:
            found.append([])
        found[-1].append(batch)
    return found


def chunk_file(label: str, number: int) -> str:
    return f"{label}-{number:05d}.npz"


def harvest(subject: Subject, sites: Sequence[Site], batches: Sequence[Batch]) -> dict[str, np.ndarray]:
    """What `load` reads again: the activations at `sites` of one chunk."""
    hookpoints = sorted({site.hookpoint for site in sites})
    found: dict[str, list[tuple[np.ndarray, ...]]] = {site.key: [] for site in sites}
    start = 0
    for batch in batches:

        def take(i: int, x: Tensor, start: int = start) -> None:
            for site in sites:
                if site.hookpoint == hookpoints[i]:
                    rows, columns, values = site.encode(x.flatten(0, 1))
                    found[site.key].append((rows + start, columns.astype(np.int32), values))

        record(subject, batch.to(subject.device), hookpoints, take)
        start += rows_of(batch, hookpoints)
    arrays = {}
    for site in sites:
        rows, columns, values = (np.concatenate(part) for part in zip(*found[site.key], strict=True))
        counts = np.bincount(rows, minlength=start)
        arrays |= {f"{site.key}/n": counts, f"{site.key}/c": columns, f"{site.key}/v": values}
    return arrays


def n_active(folder: Path, label: str, site_key: str) -> int:
    """Positive activations of one site, as `harvest` gave them."""
    return sum(int(np.load(path)[f"{site_key}/n"].sum()) for path in folder.glob(f"{label}-*.npz"))


def load(folder: Path, label: str, site_key: str, n_features: int) -> sparse.csr_matrix:
    """Activations `[tokens, n_features]` float32 of one site, as `harvest` gave them."""
    counts, columns, values = [], [], []
    for path in sorted(folder.glob(f"{label}-*.npz")):
        with np.load(path) as chunk:
            for store, part in ((counts, "n"), (columns, "c"), (values, "v")):
                store.append(chunk[f"{site_key}/{part}"])
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    return sparse.csr_matrix(
        (np.concatenate(values), np.concatenate(columns), indptr), shape=(len(indptr) - 1, n_features)
    )


def token_identity(data: Data, n_vocabulary: int) -> sparse.csr_matrix:
    """`[tokens, vocabulary]`, one 1 per token; of whole sequences their counts."""
    ids = np.concatenate(data.ids)
    if data.whole:
        owner = np.repeat(np.arange(len(data.ids)), data.table.lengths)
        counts = (np.ones(len(ids), dtype=np.float32), (owner, ids))
        return sparse.csr_matrix(counts, shape=(len(data.ids), n_vocabulary))
    return sparse.csr_matrix(
        (np.ones(len(ids), dtype=np.float32), ids.astype(np.int32), np.arange(len(ids) + 1)),
        shape=(len(ids), n_vocabulary),
    )


def encoded(subject: Subject, sites: Sequence[Site], texts: Sequence[str]) -> list[sparse.csr_matrix]:
    """Activations float32 `[tokens, features of all sites, one site after the other]` of each text; one row at pooled
    hookpoints. Texts of one length run together."""
    starts = np.concatenate([[0], np.cumsum([site.n_features for site in sites])])
    hookpoints = [site.hookpoint for site in sites]
    found: dict[int, sparse.csr_matrix] = {}
    for places, batch in batches_of(subject, texts):
        parts: list[tuple[np.ndarray, ...]] = []

        def take(i: int, x: Tensor, parts=parts) -> None:
            rows, columns, values = sites[i].encode(x.flatten(0, 1))
            parts.append((values, rows, columns + starts[i]))

        record(subject, batch, hookpoints, take)
        values, rows, columns = (np.concatenate(part) for part in zip(*parts, strict=True))
        n_rows = rows_of(batch, hookpoints)
        every = sparse.csr_matrix((values, (rows, columns)), shape=(n_rows, int(starts[-1])))
        each = n_rows // len(places)
        found |= {int(place): every[i * each : (i + 1) * each] for i, place in enumerate(places)}
    return [found[i] for i in range(len(texts))]


def feature_activations(
    subject: Subject, dictionary: Dictionary, reading: Reading, features: Sequence[tuple[int, int]]
) -> np.ndarray:
    """float32 `[features, tokens]` on one sequence; features are (layer, feature)."""
    found = encoded(subject, dictionary_sites("dictionary", dictionary), [reading.text])[0]
    config = dictionary.config
    return found[
        :, [config.layers.index(layer) * config.n_features + feature for layer, feature in features]
    ].T.toarray()
