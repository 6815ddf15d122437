"""Groups of neurons by semi-non-negative matrix factorisation (Ding et al. 2010; of MLP activations METHODS_BASES §2).

    X − c ≈ G Fᵀ      X [tokens, d_ff] neurons, F [d_ff, K] of any sign with ⌈p · d_ff⌉ entries a factor, G ≥ 0

The file is that of any dictionary, a row of F per feature: `W_dec` = Fᵀ with rows of length one, `W_enc` = F, `b_dec` =
c, `b_enc` = −c F, so that a pre-activation is a factor's product with the input. The activations of a token are the
non-negative least squares solution on its factors, which is why several can share what one alone would explain; `relu`
in the config stands for that. They write to the neurons they read; in the residual stream feature k writes F_k W_out.

Random starts disagree, so a factor is kept where it comes back: of `restarts` starts, dealt to `seeds`, the best of
each seed is compared by assignment, and a feature is the mean of the matched factors, truncated again, where at least
`AGREE` of the seeds have one with cosine above `SAME`. Rows of features that are not kept are zero and never active.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.registry import ARCHITECTURES
from isotrace.dictionaries.sparsity.rule import SparseActivations

EPSILON = 1e-6
TINY = 1e-16  # what tends to zero stops here: denormal numbers take a hundred times as long
SAME, AGREE = 0.9, 0.8
OFFSETS = ("nothing", "floor", "median")
EDGE, CHILDREN = 0.15, 4
USUAL = {
    "p": 0.03,
    "n_steps": 20,
    "restarts": 10,
    "seeds": 5,
    "iterations": 150,
    "offset": "nothing",
    "consensus": True,
}


@ARCHITECTURES.named("snmf")
class NeuronGroups(Dictionary):
    """`options` of its config: p, n_steps (multiplicative steps of encoding), restarts, seeds, iterations, offset (what
    is subtracted: `nothing`, the `floor` of the activation function, which is the least value of the layer, or each
    neuron's `median`) and consensus (False: the best start as it is). `recurrence [n_layers, F]`: share of the seeds
    that have each factor."""

    default_in, default_out = "layers.{}.neuron", "layers.{}.neuron"
    usual: ClassVar = {"activation": "relu", "n_features": 100, "options": USUAL}
    fitted = 20_000

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__(config)
        self.recurrence = nn.Buffer(torch.zeros(config.n_layers, config.n_features))

    @classmethod
    def check(cls, config: DictionaryConfig) -> None:
        super().check(config)
        o = config.options
        if config.hookpoint_in != config.hookpoint_out or config.window != 1 or config.skip or config.prefixes:
            raise DictionaryError("neuron groups write where they read, and have no window, skip path or prefixes.")
        if config.activation != "relu" or config.token_normalization != "none":
            raise DictionaryError("activations of neuron groups solve least squares: leave the rule at relu.")
        if set(o) != set(USUAL):
            raise DictionaryError(f"options of neuron groups are {', '.join(USUAL)}: give all of them, no others.")
        counts = [o[name] for name in ("n_steps", "restarts", "seeds", "iterations")]
        if not 0 < float(o["p"]) <= 1 or not all(isinstance(n, int) and n > 0 for n in counts):
            raise DictionaryError("p is a share above 0, and n_steps, restarts, seeds and iterations are counts.")
        if o["offset"] not in OFFSETS or int(o["restarts"]) < int(o["seeds"]):
            raise DictionaryError(f"offset is one of {', '.join(OFFSETS)}, and there is a restart for every seed.")

    def encode(self, layer: int, x: Tensor) -> SparseActivations:
        weight = self.W_enc[layer]
        steps = int(self.config.options["n_steps"])
        return SparseActivations.of(nonnegative(self.preactivations(layer, x), weight.T @ weight, steps))

    @torch.no_grad()
    def fit(self, tokens: Tensor, seed: int) -> None:
        """From neurons `[n_layers, tokens, d_ff]`."""
        o = self.config.options
        p, given = float(o["p"]), (self.config.n_features, float(o["p"]), int(o["iterations"]))
        for layer, x in enumerate(tokens):
            c = offset_of(str(o["offset"]), x)
            found = best_starts(x - c, *given, starts=dealt(int(o["restarts"]), int(o["seeds"]), seed))
            factors, share = consensus([one.factors for one in found], p)
            self.place(layer, factors if o["consensus"] else found[0].factors, c, share)

    @torch.no_grad()
    def place(self, layer: int, factors: Tensor, c: Tensor, recurrence: Tensor) -> None:
        """Take the factors `[d_ff, K]` of any length, what is subtracted `[d_ff]` and recurrence `[K]`."""
        unit = nn.functional.normalize(factors, dim=0)
        self.W_enc[layer].copy_(unit)
        self.W_dec[layer].copy_(unit.T)
        self.b_enc[layer].copy_(-c @ unit)
        self.b_dec[layer].copy_(c)
        self.recurrence[layer].copy_(recurrence)


@dataclass(frozen=True)
class Factorisation:
    """`factors [d, K]`, `weights [tokens, K]` ≥ 0 with columns of length one, `error` ‖X − G Fᵀ‖² / ‖X‖²."""

    factors: Tensor
    weights: Tensor
    error: float


def factorised(x: Tensor, n: int, p: float, iterations: int, *, seed: int) -> Factorisation:
    """`n` factors of x `[tokens, d]` from the random start `seed`: alternating least squares and multiplicative steps.
    The best iterate is returned, since truncation breaks the descent."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.rand(len(x), n, generator=generator, dtype=torch.float64).to(x)
    energy, best = float(x.square().sum()), None
    eye = EPSILON * torch.eye(n).to(x)
    for _ in range(iterations):
        gram = g.T @ g
        factors = truncated(torch.linalg.solve(gram + eye, g.T @ x).T, p)
        lengths = g.norm(dim=0).clamp(min=torch.finfo(x.dtype).tiny)
        g, factors, gram = g / lengths, factors * lengths, gram / torch.outer(lengths, lengths)
        product, inner = x @ factors, factors.T @ factors
        error = 1 + float((gram * inner).sum() - 2 * (g * product).sum()) / energy
        if best is None or error < best.error:
            best = Factorisation(factors, g, error)
        g = (g * ratio(g, product, inner)).clamp(min=TINY)
    assert best is not None
    return best


def best_starts(x: Tensor, n: int, p: float, iterations: int, *, starts: list[list[int]]) -> list[Factorisation]:
    """Of every list of starts the one of least error; the best first."""
    found = [[factorised(x, n, p, iterations, seed=start) for start in few] for few in starts]
    return sorted((min(few, key=lambda one: one.error) for few in found), key=lambda one: one.error)


def truncated(factors: Tensor, p: float) -> Tensor:
    """The ⌈p · d⌉ largest entries of every column of `[d, K]`, the others 0."""
    rows = factors.abs().topk(math.ceil(p * len(factors)), dim=0).indices
    return torch.zeros_like(factors).scatter(0, rows, factors.gather(0, rows))


def ratio(a: Tensor, product: Tensor, inner: Tensor) -> Tensor:
    """The multiplicative step of non-negative a `[…, K]` for ‖x − F a‖², from x F `[…, K]` and FᵀF `[K, K]`."""
    up = product.clamp(min=0) + a @ (-inner).clamp(min=0)
    down = (-product).clamp(min=0) + a @ inner.clamp(min=0) + EPSILON
    return (up.clamp(min=1e-12) / down).sqrt()  # the root has no slope at zero


def nonnegative(product: Tensor, inner: Tensor, steps: int) -> Tensor:
    """a ≥ 0 `[…, K]` that nearly minimises ‖x − F a‖², differentiably, from x F `[…, K]` and FᵀF `[K, K]`.

    Multiplicative steps only near zero; an entry whose own optimum, the others held, is zero is zero."""
    a = product.abs() + EPSILON
    for _ in range(steps):
        a = (a * ratio(a, product, inner)).clamp(min=TINY)
    slope = a @ inner - product
    return torch.where(a * inner.diagonal() > slope, a, 0.0)


def offset_of(name: str, x: Tensor) -> Tensor:
    """What is subtracted from x `[tokens, d]`: `[d]`."""
    if name == "median":
        return x.median(0).values
    return x.min().expand(x.shape[1]) if name == "floor" else torch.zeros_like(x[0])


def dealt(restarts: int, seeds: int, seed: int) -> list[list[int]]:
    """The starts of every seed; no two numbers `seed` share one."""
    every = [seed * 10_007 + start for start in range(restarts)]
    return [every[first::seeds] for first in range(seeds)]


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Of the columns of `[d, K]` and `[d, L]`; 0 of a column of zeros."""
    return nn.functional.normalize(one, dim=0).T @ nn.functional.normalize(other, dim=0)


def matched(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """(for every column of `one` its column of `other`, their cosine), by the best assignment. The sign counts: weights
    are not negative, so a factor turned round is another."""
    found = cosines(one, other)
    _, columns = linear_sum_assignment(found.clamp(min=0).cpu().numpy(), maximize=True)
    places = torch.from_numpy(columns).to(found.device)
    return places, found.gather(1, places[:, None])[:, 0]


def recurring(one: Tensor, other: Tensor) -> float:
    """Share of the columns of `one` whose match in `other` has a cosine above SAME."""
    return float((matched(one, other)[1] > SAME).float().mean())


def consensus(runs: list[Tensor], p: float) -> tuple[Tensor, Tensor]:
    """(factors `[d, K]` of unit length, share of the runs that have each `[K]`), of runs `[d, K]` each, the first the
    reference. Factors in less than AGREE of the runs are zero; the share is told all the same."""
    first = nn.functional.normalize(runs[0], dim=0)
    total, count = first.clone(), torch.ones(first.shape[1]).to(first)
    for run in runs[1:]:
        places, cosine = matched(first, run)
        same = (cosine > SAME).to(first)
        total += nn.functional.normalize(run[:, places], dim=0) * same
        count += same
    share = count / len(runs)
    mean = nn.functional.normalize(truncated(total / count, p), dim=0)
    return mean * (share >= AGREE - 1e-9), share


@dataclass(frozen=True)
class Hierarchy:
    """`factors [d, K_m]` of the highest level, `maps`: from the tokens up, G₁ `[tokens, K₁]`, G₂ `[K₁, K₂]`, …, none
    negative: X ≈ G₁ G₂ … G_m F_mᵀ."""

    factors: Tensor
    maps: tuple[Tensor, ...]

    def level(self, m: int) -> Tensor:
        """Factors `[d, K_m]` of level m, the first being 1."""
        found = self.factors
        for one in reversed(self.maps[m:]):
            found = found @ one.T
        return found

    def scores(self, m: int) -> Tensor:
        """`[tokens, K_m]`."""
        found = self.maps[0]
        for one in self.maps[1:m]:
            found = found @ one
        return found

    def edges(self, m: int) -> list[tuple[int, int]]:
        """(parent in level m + 1, child in level m): the CHILDREN largest of a parent's coefficients, where they are at
        least EDGE of the largest."""
        values, places = self.maps[m].topk(min(CHILDREN, len(self.maps[m])), dim=0)
        enough = (values >= EDGE * values[0]) & (values > 0)
        return [(int(parent), int(places[rank, parent])) for rank, parent in enough.nonzero()]


def hierarchy(
    x: Tensor, sizes: tuple[int, ...], p: float, *, seed: int, iterations: int = 150, restarts: int = 10,
    steps: int = 2_500, rate: float = 1e-3,
) -> Hierarchy:  # fmt: skip
    """Factors of factors: level 1 of x `[tokens, d]`, level m + 1 of the factors of level m, which are truncated at
    level 1 alone (a parent has the neurons of all its children); then all levels together by Adam on the mean squared
    error. Coefficients are softplus of what Adam moves, so that none becomes negative, as they do where the published
    joint step is taken as it is."""
    maps: list[Tensor] = []
    data, found = x, None
    for level, size in enumerate(sizes):
        starts = dealt(restarts, 1, seed)
        (found,) = best_starts(data, size, p if level == 0 else 1.0, iterations, starts=starts)
        maps.append(found.weights)
        data = found.factors.T
    assert found is not None
    # weights times a constant, factors divided by it: about one, where softplus moves at the pace of what it is of
    scales = [one.mean().clamp(min=1e-12) for one in maps]
    free = [torch.log(torch.expm1((one / scale).clamp(min=1e-4))) for one, scale in zip(maps, scales, strict=True)]
    top = found.factors * torch.stack(scales).prod()
    leaves = [leaf.clone().requires_grad_(True) for leaf in (*free, top)]
    adam = torch.optim.Adam(leaves, lr=rate)
    for _ in range(steps):
        with torch.enable_grad():
            made = Hierarchy(leaves[-1], tuple(nn.functional.softplus(leaf) for leaf in leaves[:-1]))
            loss = (made.scores(len(sizes)) @ made.factors.T - x).square().mean()
        for leaf, slope in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            leaf.grad = slope
        adam.step()
    return Hierarchy(leaves[-1].detach(), tuple(nn.functional.softplus(leaf.detach()) for leaf in leaves[:-1]))
