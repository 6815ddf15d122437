"""From nodes to what a chemist points at: mass per position, atom, bond and piece of syntax."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from isotrace.attribution.ablation import fitting
from isotrace.attribution.graph import AttributionGraph
from isotrace.attribution.influence import Pruned
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target


class Unit(Protocol):
    """What a token stands for; every domain has its own such class."""

    @property
    def kind(self) -> str: ...

    @property
    def atoms(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class UnitScores:
    """Shares of the circuit's mass, summing to one over `positions [tokens]`.

    `signed [tokens]` is the total effect of the token's embeddings in the frozen model.
    `atoms`: index → (mass, signed), the sums over the atom's own tokens; bonds and syntax keep their lane.
    """

    positions: Tensor
    signed: Tensor
    atoms: dict[int, tuple[float, float]]


def evenness(values: Iterable[float]) -> float:
    """Effective share of the values by size: exp(entropy of |v| / Σ|v|) / n; 1 is evenly smeared, normal noise about
    0.75. NaN for fewer than two, or where all are 0."""
    size = torch.tensor([abs(value) for value in values], dtype=torch.float64)
    if len(size) < 2 or float(size.sum()) == 0:
        return float("nan")
    p = size / size.sum()
    return float(torch.exp(-(p * p.clamp(min=1e-300).log()).sum()) / len(p))


def unit_scores(graph: AttributionGraph, pruned: Pruned, effects: Tensor, units: Sequence[Unit]) -> UnitScores:
    """Mass of a position = influence of the circuit's features and embeddings there; errors have none.

    `units` holds one object with `kind` and `atoms` per position. Mass of non-atom tokens is never given to
    atoms; a token that writes several atoms shares its mass evenly.
    """
    mass = torch.zeros(graph.n_tokens, dtype=torch.float64)
    signed = torch.zeros(graph.n_tokens, dtype=torch.float64)
    kept = pruned.nodes[: graph.n_features]
    mass.index_add_(0, graph.feature_nodes[kept, 1], pruned.influence[: graph.n_features][kept])
    nodes = range(graph.tokens.start, graph.tokens.stop)
    positions = torch.tensor([graph.position_of(node) for node in nodes])
    mass.index_add_(0, positions, pruned.influence[graph.tokens])
    signed.index_add_(0, positions, effects[graph.tokens])
    mass /= mass.sum()
    masses, effects_of = over_atoms(units, mass), over_atoms(units, signed)
    return UnitScores(mass, signed, {atom: (m, effects_of[atom]) for atom, m in masses.items()})


def over_atoms(units: Sequence[Unit], values: Tensor) -> dict[int, float]:
    """`values [tokens]` summed over the tokens of each atom; a token that writes several shares its value evenly."""
    found: dict[int, float] = {}
    for unit, value in zip(units, values.tolist(), strict=True):
        if unit.kind == "atom":
            for atom in unit.atoms:
                found[atom] = found.get(atom, 0.0) + value / len(unit.atoms)
    return dict(sorted(found.items()))


def tokens_of_atoms(units: Sequence[Unit]) -> dict[int, tuple[int, ...]]:
    """Positions of the tokens that write each atom."""
    found: dict[int, tuple[int, ...]] = {}
    for position, unit in enumerate(units):
        for atom in unit.atoms if unit.kind == "atom" else ():
            found[atom] = (*found.get(atom, ()), position)
    return dict(sorted(found.items()))


@torch.no_grad()
def with_ids(subject: Subject, batch: Batch, target: Target, ids: Tensor, chunk: int = 128) -> Tensor:
    """Target `[n]` of the single sequence of `batch` with `ids [n, tokens]` in place of its own."""
    parts = ids.split(fitting(chunk, ids.shape[1]))
    copies = (Batch(part, batch.mask.expand(len(part), -1), (), ()) for part in parts)
    return torch.cat([target.value(subject, b, target.hidden(subject, b)).double() for b in copies]).cpu()


def hidden_effects(subject: Subject, batch: Batch, target: Target, units: Sequence[Unit]) -> dict[int, float]:
    """By how much the target falls when the tokens of an atom are replaced by mask tokens, in the running subject, per
    atom; all atoms that one token writes are hidden together and share the fall evenly. `batch` holds one sequence,
    prepared for the target; an atom that is masked in it already is left out. None where the subject has no mask token.
    """
    if subject.mask_id is None:
        return {}
    places = atoms_to_hide(subject, batch, units)
    return shared(places, falls(subject, batch, target, places.values())[1]) if places else {}


def group_falls(
    subject: Subject, batch: Batch, target: Target, units: Sequence[Unit], groups: Sequence[Sequence[int]]
) -> list[float]:
    """By how much the target falls when all atoms of a group are hidden at once, per group of atoms; NaN for one of
    which nothing can be hidden. `batch` as in `hidden_effects`."""
    if subject.mask_id is None:
        return [float("nan")] * len(groups)
    own = atoms_to_hide(subject, batch, units)
    sets = [frozenset(p for atom in atoms for p in own.get(atom, ())) for atoms in groups]
    fall = falls(subject, batch, target, (at for at in sets if at))[1]
    return [fall.get(at, float("nan")) for at in sets]


def atoms_to_hide(subject: Subject, batch: Batch, units: Sequence[Unit]) -> dict[int, frozenset[int]]:
    """Positions of the tokens that write each atom and are no mask tokens; atoms without such a one are left out."""
    shown = batch.ids[0] != subject.mask_id
    found = {atom: frozenset(p for p in at if shown[p]) for atom, at in tokens_of_atoms(units).items()}
    return {atom: at for atom, at in found.items() if at}


def falls(
    subject: Subject, batch: Batch, target: Target, sets: Iterable[frozenset[int]]
) -> tuple[float, dict[frozenset[int], float]]:
    """(the target, by how much it falls when the tokens at each set of positions are replaced by mask tokens), in the
    running subject, which has one; `batch` holds one sequence."""
    sets = [*dict.fromkeys(sets)]
    ids = batch.ids.repeat(1 + len(sets), 1)
    for row, at in enumerate(sets, 1):
        ids[row, sorted(at)] = cast(int, subject.mask_id)
    values = with_ids(subject, batch, target, ids)
    return float(values[0]), dict(zip(sets, (values[0] - values[1:]).tolist(), strict=True))


def shared(places: Mapping[int, frozenset[int]], found: Mapping[frozenset[int], float]) -> dict[int, float]:
    """What was `found` of the tokens of every atom, evenly among the atoms that the same tokens write."""
    n_atoms = Counter(places.values())
    return {atom: found[at] / n_atoms[at] for atom, at in places.items()}
