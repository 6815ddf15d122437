"""Does a subject undo an edit: how much of it is left in later layers, and how much of what was written under it is set
back. Each number stands beside that of random twins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.interventions import Plan, Residuals
from isotrace.stats.bootstrap import bootstrap_weights, interval
from isotrace.stats.share import share
from isotrace.steering.edits import Edits
from isotrace.steering.kinds import AddEdit
from isotrace.subjects.subject import Batch, Subject

DRAWS = 2_000


@dataclass(frozen=True, eq=False)
class Persistence:
    """ρ_l = ⟨h′_l − h_l, v̂⟩ / ⟨h′_first − h_first, v̂⟩ of the stream behind each of `layers`, over the tokens that
    the edit moved: `own [layers]`, `twins [n, layers]`, each along its own direction. NaN where it moved none."""

    layers: tuple[int, ...]
    own: np.ndarray
    twins: np.ndarray


def persistence(
    subject: Subject, edits: Edits, batches: Sequence[Batch], alpha: float, n_twins: int = 20, seed: int = 0,
    last: bool = False,
) -> Persistence:  # fmt: skip
    """Of one added direction in the residual stream; `last`: behind the first and the last layer alone, which takes
    less memory. Raises InputError for other edits."""
    edit = edits.edits[0]
    if len(edits.edits) > 1 or not isinstance(edit, AddEdit) or not isinstance(edit.components, Residuals):
        raise InputError("persistence is that of one direction added to the residual stream: give such an edit.")
    ends = np.cumsum(subject.stack_sizes)
    layers = tuple(range(edit.layer, int(ends[np.searchsorted(ends, edit.layer, side="right")])))
    layers = (layers[0], layers[-1]) if last else layers
    rows = [edit, *(edit.twin(torch.Generator().manual_seed(seed + i)) for i in range(n_twins))]
    found = np.stack([_kept(subject, one, batches, alpha, layers) for one in rows])
    return Persistence(layers, found[0], found[1:])


def _kept(subject: Subject, edit: AddEdit, batches: Sequence[Batch], alpha: float, layers: Sequence[int]) -> np.ndarray:
    sites = [f"layers.{layer}.resid_post" for layer in layers]
    totals = torch.zeros(len(layers), dtype=torch.float64)
    for batch in batches:
        before, after = (
            subject.run(batch, plan=plan, capture=sites, logits=False).captured for plan in (None, edit.plan(alpha))
        )
        moved = (after[sites[0]] != before[sites[0]]).any(-1)
        direction = edit.direction.flatten(-2).to(before[sites[0]])
        along = [((after[site] - before[site]) * direction).sum(-1)[moved].sum() for site in sites]
        totals += torch.stack(along).double().cpu()
    return share(totals.numpy(), float(totals[0]), 0.0)


@dataclass(frozen=True, eq=False)
class Reversals:
    """Of every start, int `[n]`: sites `written` otherwise under the edit, those of them set `back` to what they were
    in later unsteered rounds, and those set to something else, `other`. `lost`: starts of another length, left out."""

    written: np.ndarray
    back: np.ndarray
    other: np.ndarray
    lost: int

    @property
    def rate(self) -> float:
        """Share set back; NaN where nothing was written."""
        return share(float(self.back.sum()), float(self.written.sum()), 0.0)


def reversals(before: Sequence[Tensor], under: Sequence[Tensor], later: Sequence[Tensor]) -> Reversals:
    """From token ids `[tokens]` of every start: before the edit, at the end of the rounds under it, and at the end of
    the unsteered rounds after them."""
    rows, lost = [], 0
    for a, b, c in zip(before, under, later, strict=True):
        if not len(a) == len(b) == len(c):
            lost += 1
            continue
        written = a != b
        back = written & (c == a)
        rows.append([int(x.sum()) for x in (written, back, written & (c != a) & (c != b))])
    counts = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return Reversals(counts[:, 0], counts[:, 1], counts[:, 2], lost)


@dataclass(frozen=True, eq=False)
class Resistance:
    """`own` reversal rate and those of the `twins [n]`; `excess`: own less the mean of the twins', with its interval
    over starts, drawn alike for all that kept theirs. `rank`: 1 = no twin is reversed as often."""

    own: float
    twins: np.ndarray
    excess: float
    interval: tuple[float, float]
    rank: int


def resistance(own: Reversals, twins: Sequence[Reversals], seed: int = 0) -> Resistance:
    """Raises InputError without a twin."""
    if not twins:
        raise InputError("a reversal rate alone says nothing: give the reversals of random twins too.")
    every = (own, *twins)
    rates = np.array([one.rate for one in every])
    weights = {n: bootstrap_weights(n, DRAWS, seed) for n in {len(one.back) for one in every} if n}
    draws = np.stack([_drawn(one, weights) for one in every])
    excess, spread = float(rates[0] - rates[1:].mean()), draws[0] - draws[1:].mean(0)
    rank = 1 + int((rates[1:] >= rates[0]).sum())
    return Resistance(float(rates[0]), rates[1:], excess, interval(spread), rank)


def _drawn(one: Reversals, weights: dict[int, np.ndarray]) -> np.ndarray:
    """Rates `[DRAWS]` of starts drawn anew."""
    n = len(one.back)
    return share(weights[n] @ one.back, weights[n] @ one.written, 0.0) if n else np.full(DRAWS, np.nan)


Write = Callable[[Sequence[str], Plan], Sequence[str]]
"""(texts, plan) → what a generator makes of each, as many; e.g. some rounds of mask-predict."""


def resisted(
    subject: Subject, edits: Edits, starts: Sequence[str], write: Write, alpha: float, n_twins: int = 20, seed: int = 0
) -> Resistance:
    """`write` once under the edit and once more without: how much of what it wrote is set back, beside random twins at
    the same strength. Calibrate edit and twins to one dose beforehand where their effects differ."""
    before = _ids(subject, starts)
    found = []
    for one in (edits, *(edits.twin(seed + i) for i in range(n_twins))):
        under = write(starts, one.plan(alpha))
        found.append(reversals(before, _ids(subject, under), _ids(subject, write(under, Plan()))))
    return resistance(found[0], found[1:], seed)


def _ids(subject: Subject, texts: Sequence[str]) -> list[Tensor]:
    return [batch.ids[0].cpu() for batch in (subject.tokenize([text]) for text in texts)]


def resisters(
    subject: Subject, dictionary: Dictionary, batches: Sequence[Batch], plan: Plan, above: float = 0.8
) -> list[tuple[int, int]]:
    """(layer of the dictionary, feature) that are active in no sequence as it is and, under `plan`, in a share of at
    least `above`: they may work against the edit. Ablated, beside as many others that fire as often, they should make
    reversals rarer."""
    features, n = Features(dictionary), sum(len(batch.ids) for batch in batches)
    silent, active = (torch.zeros(dictionary.config.n_layers, dictionary.config.n_features) for _ in range(2))
    for counts, one in ((silent, Plan()), (active, plan)):
        for batch in batches:
            real = (batch.mask & ~subject.special(batch.ids))[..., None]
            with subject.edited(one.on(subject, batch)):
                values = features.record(subject, batch)[0]
            for layer, x in enumerate(values):
                counts[layer] += ((x[..., 0] > 0) & real).any(1).sum(0).cpu()
    return [(a, b) for a, b in torch.nonzero((silent == 0) & (active >= above * n)).tolist()]
