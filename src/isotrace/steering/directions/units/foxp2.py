"""FOXP2: from the features of one regime to those of another, within the plane that their pairs differ in.

1. support    features of a layer that the positive side has more of on both halves of the groups (selectivity), and
              that make the wanted tokens likelier where they are added to (lift)
2. plane      singular vectors of the pairs' differences there, uncentred, as many as the effective rank says
3. window     3 to 6 neighbouring layers, by the mean over them of mass × stability
4. edit       ‖h‖ · decode(λ μ_target − β ⟨z, μ_source⟩ μ_source), z the features of h at a common length

μ are the mean features of either side, projected onto the plane, at unit norm. What goes along μ_source lies in the
plane as it is, so that the published projection of it changes nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.datasets.tasks import Example
from isotrace.dictionaries.features import Features
from isotrace.interventions.hookpoints import Hookpoints, Neurons
from isotrace.steering import SwapEdit
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.directions.units.feature_clamp import candidates_of, lift
from isotrace.steering.states import usual_lengths

MOST, DRAWS = 12, 20
"""Singular vectors of a plane, and bootstrap samples of the pairs."""
WIDTHS = (3, 6)
"""Layers of a window, where there are as many."""


@dataclass(frozen=True, eq=False)
class Plane:
    """`axes [r, support]`, orthonormal. `mass`: share of the pairs' differences (squared) in it. `stability`: the
    median over pairs of bootstrap samples of tr(P_i P_j) / r, 1 where all draws give one plane."""

    axes: Tensor
    mass: float
    stability: float


@direction(
    "foxp2", labels="binary or terciles", pairs="yes", cost="layers · 4N F; lift: layers · size · 6 · inputs F",
    tuned="β / λ, layers", components=Neurons, source="FOXP2 2025",
)  # fmt: skip
def foxp2(
    fitting: Fitting, tokens: str, lam: float = 1.0, beta: float = 0.5, size: int = 50, length: float | None = None,
    inputs: int = 16, seed: int = 0,
) -> list[SwapEdit]:  # fmt: skip
    """Features of the positive side for those of the negative one, within the plane that pairs differ in

    Needs a dictionary. `tokens` (`N,O`): those that features of the support, `size` a layer at most, have to make
    likelier in `inputs` held-out negative sequences. `length`: that of the states which the dictionary was trained on,
    1 where they were normalised; None: they were raw, and every token is brought to the median length in its layer.
    `lam` counts in that length; at an equal dose only `beta` / `lam` matters, and neither is chosen on data. Edits are
    made at masked sites, of other subjects from the first token written on. Raises InputError without a dictionary, for
    fewer than two pairs or groups, and where no feature of any layer is both selective and lifts."""
    parts, contrast, subject = fitting.components, fitting.contrast, fitting.subject
    if not isinstance(parts, Features):
        raise InputError(f"foxp2 moves features of a dictionary, not {parts.name}s: give --dictionary.")
    pairs = torch.from_numpy(contrast.need_pairs("foxp2"))
    reads = Hookpoints(tuple(parts.reads(subject)))
    every = range(len(reads.names))  # features may write to layers that are not edited
    usual = usual_lengths(subject, contrast.examples, reads, every) if length is None else dict.fromkeys(every, length)
    lengths = tuple(usual[layer] for layer in every)
    fitting = replace(fitting, components=replace(parts, lengths=lengths))
    supports, planes, sides = {}, {}, {}
    for layer in fitting.progress(fitting.layers, "supports"):
        supports[layer] = support_of(fitting, layer, tokens, size, inputs, seed)
        if supports[layer]:
            states = replace(fitting, layers=(layer,)).states()[layer][:, supports[layer]]
            positive, negative = states[pairs[:, 0]], states[pairs[:, 1]]
            planes[layer], sides[layer] = plane_of(positive - negative, seed), (positive.mean(0), negative.mean(0))
    if not planes:
        raise InputError(
            f"no feature tells the sides apart and makes {tokens} likelier: give more sequences or layers."
        )
    scores = [planes[at].mass * planes[at].stability if at in planes else 0.0 for at in fitting.layers]
    return [
        swap(fitting, layer, supports[layer], planes[layer], sides[layer], lam * lengths[layer], beta)
        for layer in (fitting.layers[i] for i in window_of(scores))
        if layer in planes
    ]


def support_of(fitting: Fitting, layer: int, tokens: str, size: int, inputs: int, seed: int) -> list[int]:
    """At most `size` features: of the most selective, those of positive lift."""
    chosen, held = fitting.contrast.split(seed=seed)
    negative: list[Example] = [held.examples[i] for i in held.negative[:inputs]]
    found = candidates_of(replace(fitting, layers=(layer,)), chosen, held, size)
    return [i for _, i in found if lift(fitting.subject, fitting.components, layer, i, negative, tokens) > 0]


def rank_of(sizes: Tensor) -> int:
    """Of singular values, the largest first: the smaller of ⌈exp H(σ² / Σσ²)⌉ and the i of the largest σ_i / σ_{i+1},
    12 at most. Raises InputError where all are 0."""
    if not float(sizes[0]) > 0:
        raise InputError("the two sequences of every pair are alike in these features: give other pairs.")
    entropy = torch.special.entr(sizes.square() / sizes.square().sum()).sum()
    drops = sizes[:-1] / sizes[1:].clamp(min=1e-9 * sizes[0])  # what is rounding is all alike
    return min(math.ceil(math.exp(entropy) - 1e-9), 1 + int(drops.argmax()) if len(drops) else 1, MOST)


def plane_of(differences: Tensor, seed: int) -> Plane:
    """Of the pairs' differences `[pairs, support]`, float64."""
    _, sizes, axes = torch.linalg.svd(differences, full_matrices=False)
    r, n = rank_of(sizes), len(differences)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (DRAWS, n), generator=generator)
    counts = torch.zeros(DRAWS, n, dtype=differences.dtype).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    grams = torch.einsum("bn,ni,nj->bij", counts, differences, differences)
    others = torch.linalg.eigh(grams).eigenvectors[..., -r:]
    shared = torch.einsum("bir,cis->bcrs", others, others).square().sum((-1, -2)) / r
    one, other = torch.triu_indices(DRAWS, DRAWS, 1)
    mass = float(sizes[:r].square().sum() / sizes.square().sum())
    return Plane(axes[:r], mass, float(shared[one, other].median()))


def window_of(scores: Sequence[float]) -> range:
    """The neighbours of the largest mean score. A sum would always take the longest window."""
    n = len(scores)
    windows = [range(a, a + w) for w in range(min(WIDTHS[0], n), min(WIDTHS[1], n) + 1) for a in range(n - w + 1)]
    return max(windows, key=lambda window: sum(scores[i] for i in window) / len(window))


def swap(
    fitting: Fitting, layer: int, support: list[int], plane: Plane, sides: tuple[Tensor, Tensor], scale: float,
    beta: float,
) -> SwapEdit:  # fmt: skip
    """The edit of a layer, from the mean features of the support of either side."""
    target, source = (torch.zeros(fitting.components.sizes(fitting.subject)[layer]).double() for _ in sides)
    for whole, mean in zip((target, source), sides, strict=True):
        whole[support, 0] = mean @ plane.axes.T @ plane.axes
    if not source.any():  # features that are silent on the negative side: nothing is there to go
        source, beta = target, 0.0
    return SwapEdit(
        components=fitting.components, layer=layer, direction=target, scale=scale, source=source, share=beta,
        where=fitting.sites,
    )  # fmt: skip
