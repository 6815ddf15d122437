"""From nodes to what a chemist points at: mass per position, atom, bond and piece of syntax."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from isotrace.attribution.graph import AttributionGraph
from isotrace.attribution.influence import Pruned


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

    @property
    def spread(self) -> float:
        """Effective share of the atoms: exp(entropy of atom masses) / number of atoms; 1 = evenly smeared."""
        mass = torch.tensor([m for m, _ in self.atoms.values()], dtype=torch.float64)
        if len(mass) < 2 or float(mass.sum()) == 0:
            return float("nan")
        p = mass / mass.sum()
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
    atoms: dict[int, tuple[float, float]] = {}
    for unit, m, s in zip(units, mass.tolist(), signed.tolist(), strict=True):
        if unit.kind == "atom":
            for atom in unit.atoms:
                before = atoms.get(atom, (0.0, 0.0))
                atoms[atom] = (before[0] + m / len(unit.atoms), before[1] + s / len(unit.atoms))
    return UnitScores(mass, signed, dict(sorted(atoms.items())))
