"""Where a masked product atom is read from: another atom written into a precursor, heads removed, heads patched.

A prediction that follows the altered precursor is read from the context; one that stays at what the product really has
there is told by the rest of the text, or known from training. Heads that carry the context are those without which the
prediction no longer follows, and which alone make it follow when patched from the altered text into the clean one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.discovery.knockout import Removed
from isotrace.domains.reaction.tokens import parse_reaction
from isotrace.interventions import Heads, Values
from isotrace.stats.bootstrap import mean_interval
from isotrace.studies.atom_mapping import Masked
from isotrace.studies.reactions.scores import Head
from isotrace.subjects.subject import Batch, Subject

Row = dict[str, Any]
ATOMS = ("C", "N", "O", "S", "F", "Cl", "Br", "I", "c", "n", "o", "s")
"""Tokens that may be written in place of an atom."""
NONE: tuple[Head, ...] = ()


@dataclass(frozen=True)
class Altered:
    """`clean`: the product atom at `place` is masked, `old` its token. `partner`, `other`: the same with another atom
    written in place of the precursor atom it comes from, the token `new`, or in place of another one. `hidden`: all
    precursor atoms masked."""

    place: int
    old: int
    new: int
    clean: Batch
    partner: Batch
    other: Batch
    hidden: Batch


def altered(subject: Subject, item: Masked, rng: np.random.Generator) -> Altered | None:
    """None where no replacement leaves a reaction that can be read, or the atom has no partner."""
    (asked,) = item.asked
    place = item.case.partner.get(asked)
    others = [p for p in item.case.precursors if p != place]
    if place is None or not others:
        return None
    here, there = _rewritten(subject, item, place, rng), _rewritten(subject, item, int(rng.choice(others)), rng)
    if here is None or there is None:
        return None
    assert subject.mask_id is not None
    empty = item.batch.ids.clone()
    empty[0, list(item.case.precursors)] = subject.mask_id
    (partner, new), (other, _) = here, there
    return Altered(asked, int(item.truth()[0]), new, item.batch, partner, other, item.batch.with_ids(empty))


def _rewritten(subject: Subject, item: Masked, place: int, rng: np.random.Generator) -> tuple[Batch, int] | None:
    """The masked batch with another atom at `place`, the first of a random order that leaves a readable reaction."""
    start, end = item.case.batch.offsets[0][place]
    text, (asked,) = item.case.batch.sequences[0], item.asked
    taken = {int(item.case.batch.ids[0, place]), int(item.case.batch.ids[0, asked])}
    for symbol in rng.permutation(ATOMS).tolist():
        token = subject.token_id(symbol)
        if token in taken:
            continue
        try:
            parse_reaction(text[:start] + symbol + text[end:])
        except InputError:
            continue
        ids = item.batch.ids.clone()
        ids[0, place] = token
        return item.batch.with_ids(ids), token
    return None


def logits_at(subject: Subject, batch: Batch, place: int, heads: Sequence[Head], reference: Values | None) -> Tensor:
    """`[vocabulary]`, with `heads` held at `reference`."""
    nodes = torch.tensor([[layer, -1, head] for layer, head in heads], dtype=torch.long).reshape(-1, 3)
    kind = Heads() if reference is None else Removed(Heads(), nodes, reference)
    return subject.head(kind.record(subject, batch)[1][0, place])


@torch.no_grad()
def context_rows(
    subject: Subject,
    items: Sequence[Altered],
    chosen: Sequence[Head],
    index: int,
    means: Values,
    n_random: int,
    seed: int,
) -> list[Row]:
    """One row per condition: how often the prediction is the product's own atom, the one written into the precursor, or
    neither, and by how much the logit of the new one exceeds that of the old one. `index`: that of the named head."""
    rng = np.random.default_rng(seed)
    n_layers, n_heads = subject.n_layers, subject.n_heads(0)
    rest = [(n, h) for n in range(n_layers) for h in range(n_heads) if (n, h) not in set(chosen) and h != index]
    draws = [[rest[i] for i in rng.choice(len(rest), len(chosen), replace=False)] for _ in range(n_random)]
    column = [(n, index) for n in range(n_layers)]
    sets: dict[str, list[list[Head]]] = {
        "the chosen heads": [list(chosen)],
        "as many random heads of other indices": draws,
    }
    sets |= {f"heads {index} of all layers": [column]}
    size = min(n_layers, len(rest))
    wide = [[rest[i] for i in rng.choice(len(rest), size, replace=False)] for _ in range(n_random)]
    sets |= {f"{size} random heads of other indices": wide}
    rows = [
        _row(name, [[_seen(subject, item, getattr(item, of), NONE, None) for item in items]], seed)
        for name, of in (
            ("as it is", "clean"),
            ("all precursor atoms masked", "hidden"),
            ("another atom at another precursor atom", "other"),
            ("another atom at its precursor atom", "partner"),
        )
    ]
    for name, several in sets.items():
        found = [[_seen(subject, item, item.partner, heads, means) for item in items] for heads in several]
        rows.append(_row(f"the same, {name} at their means", found, seed))
    recorded = [Heads().record(subject, item.partner)[0] for item in items]
    for name, several in sets.items():
        found = [
            [_seen(subject, item, item.clean, heads, values) for item, values in zip(items, recorded, strict=True)]
            for heads in several
        ]
        rows.append(_row(f"as it is, {name} from the altered text", found, seed))
    return rows


def _seen(
    subject: Subject, item: Altered, batch: Batch, heads: Sequence[Head], reference: Values | None
) -> tuple[bool, bool, float]:
    logits = logits_at(subject, batch, item.place, heads, reference)
    best = int(logits.argmax())
    return best == item.old, best == item.new, float(logits[item.new] - logits[item.old])


def _row(name: str, draws: Sequence[Sequence[tuple[bool, bool, float]]], seed: int) -> Row:
    """Several draws of heads are averaged within an input; intervals are over inputs."""
    values = np.array(draws, float).mean(0)
    row: Row = {"condition": name, "inputs": len(values), "sets": len(draws)}
    for j, what in enumerate(("stays", "follows", "new_minus_old")):
        row |= {what: float(values[:, j].mean()), f"{what}_ci": mean_interval(values[:, j], seed)}
    return row
