"""Ranking of all parts of a basis by what they do for a task, over its discovery sequences.

Every ranking is  score_f = Σ over sequences and tokens of (a_f − ā_f) · W_f · ∂S/∂(what is written),  S the surrogate
of the task metric (see `Readout.coefficients`), at a point that the ranking names:

    attribution_patching   at the replacement model with all parts; later parts respond (total effect)
    relp                   the same, with RelP's rules instead of gradients (`methods.relp`)
    eap_ig                 averaged along the line from all parts at their mean to all at their own activation, the
                           activations held (each part gets its own share: Σ_f score_f = S(all) − S(none))
    pruning                attribution patching again and again: the better half of what is left stays, all else
                           goes to its mean, and what is left is scored there. The score is a rank
    learned_mask           no such sum: learned from the first of these on, see `mask`; of every kind of parts

Positive and negative scores are kept apart: a circuit is made of the parts that raise the metric; the unsigned
variant takes |score|. The sum over tokens is a product of a sparse matrix, so cost does not grow with the features.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress
from isotrace.base.work import Memo
from isotrace.datasets.tasks import Example, TaskData
from isotrace.dictionaries.features import Features
from isotrace.discovery.methods import METHODS, Method, Problem, method_of
from isotrace.discovery.methods.relp import propagated
from isotrace.discovery.tasks import mask
from isotrace.discovery.tasks import readout as readouts
from isotrace.discovery.tasks.basis import Basis, Keep, Statistics
from isotrace.discovery.tasks.readout import Readout
from isotrace.interventions.writers import Writers
from isotrace.subjects.subject import Batch

CACHE = 1  # raised when a score is computed differently; a method's own `cache` when that method is
RANKINGS = ("attribution_patching", "relp", "eap_ig", "pruning", mask.NAME)
STEPS = 5
BATCH_TOKENS = 2_048


def check_ranking(name: str, basis: Basis, *, final: bool = True) -> None:
    """Raises InputError for a name that is neither a method for nodes nor, of `Writers`, in RANKINGS, and for one that
    follows the final hidden state where others are read (`final` False)."""
    own = RANKINGS if isinstance(basis.components, Writers) else (mask.NAME,)
    if name not in own and (name not in METHODS or isinstance(basis.components, Features)):
        known = own if isinstance(basis.components, Features) else (*own, *METHODS)
        raise InputError(f"no ranking {name!r} of {basis.name}: give one of {', '.join(dict.fromkeys(known))}.")
    if name not in own and METHODS[name].ranks != "node":
        raise InputError(f"{name} ranks edges, not {basis.name}: give another ranking.")
    if not final and name not in (*RANKINGS, "activation_patching"):
        raise InputError(f"{name} follows the final hidden state alone, and --target reads others: rank by another.")


def rank(
    name: str, basis: Basis, readout: Readout, data: TaskData, statistics: Statistics,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Tensor:  # fmt: skip
    """Scores `[parts]` float64, layers one after the other. Raises InputError as `check_ranking` does."""
    check_ranking(name, basis)
    if name == mask.NAME:
        start = rank(RANKINGS[0], basis, readout, data, statistics)
        return mask.learned(basis, readout, data, statistics, start, progress)
    if name not in RANKINGS or not isinstance(basis.components, Writers):
        return _by_method(method_of(name), basis, readout, data, statistics, progress)
    if name != "pruning":
        return _scores(name, basis, readout, data, statistics, None, progress)
    alive, ordered = torch.arange(basis.n), torch.zeros(0, dtype=torch.long)
    while len(alive) > 1:
        scores = _scores("attribution_patching", basis, readout, data, statistics, basis.split(alive), progress)
        best_first = alive[scores[alive].argsort(descending=True, stable=True)]
        ordered = torch.cat([best_first[len(alive) // 2 :], ordered])
        alive = best_first[: len(alive) // 2].sort().values
    found = torch.zeros(basis.n, dtype=torch.float64)
    found[torch.cat([alive, ordered])] = torch.arange(basis.n, 0, -1, dtype=torch.float64)
    return found


def _discovery(
    readout: Readout, data: TaskData, progress: Callable[[Iterable], Iterable]
) -> Iterator[tuple[list[Example], Batch, Tensor]]:
    """(examples, batch, coefficients `[n, outputs]` of the surrogate on it) of the discovery part."""
    examples = data.parts["discover"]
    coefficients, at = torch.from_numpy(readout.coefficients(examples)).float().to(readout.subject.device), 0
    for rows, batch in progress(data.batches("discover", BATCH_TOKENS, readout.subject)):
        chosen = [examples[i] for i in rows]
        n = sum(np.size(e.y) for e in chosen)
        yield chosen, batch, coefficients[at : at + n]
        at += n


def _scores(
    name: str, basis: Basis, readout: Readout, data: TaskData, statistics: Statistics, keep: Keep | None,
    progress: Callable[[Iterable], Iterable],
) -> Tensor:  # fmt: skip
    """Scores `[parts]` at the replacement model with the parts in `keep` (all, where None), all others at their mean;
    those others have no meaning."""
    totals = [torch.zeros(n, dtype=torch.float64) for n in basis.sizes]
    base = basis.writers.base(basis.subject, statistics.mean)
    for chosen, batch, share in _discovery(readout, data, progress):

        def surrogate(final: Tensor, chosen=chosen, batch=batch, share=share) -> Tensor:
            return (readout.outputs(chosen, batch, final) * share).sum()

        active, slopes = at_point(name, basis, batch, base, surrogate, statistics, keep)
        _accumulate(totals, basis, batch, active, slopes, statistics)
    return torch.cat(totals)


Slopes = list[Tensor]
"""∂S/∂(what is written), `[batch, tokens, d_out]` per layer."""


def at_point(
    name: str, basis: Basis, batch: Batch, base: dict[int, Tensor], surrogate: Callable[[Tensor], Tensor],
    statistics: Statistics, keep: Keep | None = None,
) -> tuple[list[Tensor], Slopes]:  # fmt: skip
    """(activations `[batch, tokens, parts]` per layer, slopes) where the ranking of that name takes them; `pruning` as
    attribution patching. `base`: `Writers.base`."""
    with propagated(basis.subject) if name == "relp" else nullcontext():
        if name == "eap_ig":
            return _along(basis, batch, base, surrogate)
        return _total(basis, batch, base, surrogate, statistics, keep)


def _total(
    basis: Basis, batch: Batch, base: dict[int, Tensor], surrogate: Callable[[Tensor], Tensor],
    statistics: Statistics, keep: Keep | None,
) -> tuple[list[Tensor], Slopes]:  # fmt: skip
    """(activations `[batch, tokens, parts]` per layer, slopes) of the replacement model with the parts in `keep`."""
    active: list[Tensor] = []
    written: dict[int, Tensor] = {} if keep is None else dict(base)

    def change(layer: int, x: Tensor) -> Tensor:
        values = basis.writers.encode(layer, x)
        active.append(values.detach())
        if keep is None:
            basis.writers.add(layer, values @ basis.writers.rows(basis.subject, layer, slice(None)), written)
        elif len(kept := keep[layer]):
            change = values[..., kept] - statistics.mean[layer][kept]
            basis.writers.add(layer, change @ basis.writers.rows(basis.subject, layer, kept), written)
        return written[layer].expand(*x.shape[:-1], -1)

    slopes = _slopes(basis, batch, change, surrogate)
    return active, slopes


def _along(
    basis: Basis, batch: Batch, base: dict[int, Tensor], surrogate: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], Slopes]:
    """The same, averaged over STEPS points between all at their mean and all at their own activation."""
    active: list[Tensor] = []
    written: dict[int, Tensor] = {}

    def full(layer: int, x: Tensor) -> Tensor:
        active.append(basis.writers.encode(layer, x))
        basis.writers.add(layer, active[-1] @ basis.writers.rows(basis.subject, layer, slice(None)), written)
        return basis.writers.finish(basis.subject, layer, written[layer], x)

    with torch.no_grad(), basis.writers.computed_by(basis.subject, full):
        basis.subject.hidden(batch.ids, batch.mask)
    total: Slopes = []
    for step in range(STEPS):
        share = (step + 0.5) / STEPS
        found = _slopes(
            basis,
            batch,
            lambda layer, _, share=share: torch.lerp(base[layer].expand_as(written[layer]), written[layer], share),
            surrogate,
        )
        total = found if not total else [t + f for t, f in zip(total, found, strict=True)]
    return active, [t / STEPS for t in total]


def _slopes(
    basis: Basis, batch: Batch, change: Callable[[int, Tensor], Tensor], surrogate: Callable[[Tensor], Tensor]
) -> Slopes:
    leaves: list[Tensor] = []

    def output(layer: int, x: Tensor) -> Tensor:
        total = change(layer, x)
        leaves.append(torch.zeros_like(total).requires_grad_(True))
        return basis.writers.finish(basis.subject, layer, total + leaves[-1], x)

    with torch.enable_grad(), basis.writers.computed_by(basis.subject, output):
        value = surrogate(basis.subject.hidden(batch.ids, batch.mask))
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def _accumulate(
    totals: list[Tensor], basis: Basis, batch: Batch, active: list[Tensor], slopes: Slopes, statistics: Statistics
) -> None:
    """Add Σ (a − ā) W · slope of the batch to the score of every part."""
    real = [g[batch.mask] for g in slopes]
    for layer, values in enumerate(active):
        a = values[batch.mask]
        slope = torch.cat([real[t] for t in basis.writers.targets(layer)], -1)  # [tokens, n_targets · d_out]
        if float((a != 0).float().mean()) < 0.2:
            product = torch.from_numpy(scipy.sparse.csr_array(a.cpu().numpy()).T @ slope.cpu().numpy()).to(a.device)
        else:
            product = a.T @ slope
        product = product - statistics.mean[layer][:, None] * slope.sum(0)
        totals[layer] += (product * basis.writers.rows(basis.subject, layer, slice(None))).sum(1).double().cpu()


def _by_method(
    chosen: Method, basis: Basis, readout: Readout, data: TaskData, statistics: Statistics,
    progress: Callable[[Iterable], Iterable],
) -> Tensor:  # fmt: skip
    """The method's scores of every component, a node being all positions, summed over the sequences."""
    totals = [torch.zeros(n, dtype=torch.float64) for n in basis.sizes]
    settings = {"by_position": False} if chosen.name == "activation_patching" else {}
    for chosen_ones, batch, share in _discovery(readout, data, progress):
        # one number per sequence is what methods need; a residue task has as many outputs as it has labels
        of = torch.tensor([i for i, e in enumerate(chosen_ones) for _ in range(np.size(e.y))])

        def metric(copies: Batch, final: Tensor, share=share, of=of, chosen_ones=chosen_ones) -> Tensor:
            times = len(final) // len(chosen_ones)
            outputs = readout.outputs(chosen_ones * times, copies, final)
            sequence = torch.cat([of + k * len(chosen_ones) for k in range(times)]).to(final.device)
            return final.new_zeros(len(final)).index_add(0, sequence, (outputs * share.repeat(times, 1)).sum(1))

        problem = Problem(basis.subject, basis.components, batch, metric, basis.means(statistics))
        for total, scores in zip(totals, chosen(problem, **settings).over_positions(), strict=True):
            total += scores.sum(0).double().cpu()
    return torch.cat(totals)


@dataclass(frozen=True, eq=False)
class Ranker:
    """Ranks the parts of a basis, and remembers; `role` tells bases apart."""

    role: str
    basis: Basis
    readout: Readout
    ranking: str
    memo: Memo
    progress: Progress

    def scores(self, data: TaskData, found: Statistics, where: str = "") -> Tensor:
        # the neurons beside other mediators are ranked by the usual method where they have no such one
        ranking, basis = self.ranking, self.basis
        ranking = ranking if not isinstance(basis.components, Writers) or ranking in RANKINGS else RANKINGS[0]
        shown = lambda items: self.progress(items, f"ranking {self.role}{where}")  # noqa: E731
        made = lambda: rank(ranking, basis, self.readout, data, found, shown).numpy()  # noqa: E731
        return torch.from_numpy(self.memo(f"scores {self.role}{where}", made))

    def statistics(self, data: TaskData) -> Statistics:
        made: list[Statistics] = []

        def measured(which: str) -> np.ndarray:
            if not made:
                batched = data.batches("discover", readouts.BATCH_TOKENS, self.basis.subject)
                made.append(self.basis.statistics(batch for _, batch in batched))
            return torch.cat(getattr(made[0], which)).cpu().numpy()

        mean, density = (
            torch.from_numpy(self.memo(f"{which} {self.role}", partial(measured, which))).split(self.basis.sizes)
            for which in ("mean", "density")
        )
        return Statistics(tuple(part.to(self.basis.subject.device) for part in mean), tuple(density))
