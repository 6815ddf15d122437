"""Atoms over the spellings of a molecule: what belongs to the molecule, and what to the way it is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from rdkit import Chem

from isotrace.attribution.ablation import feature_values
from isotrace.attribution.circuits.halving import halved
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.influence import prune_to_circuit, total_effects
from isotrace.attribution.units import group_falls, hidden_effects, unit_scores
from isotrace.base.errors import InputError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.domains.molecule import TokenUnit, token_map
from isotrace.domains.molecule.spelling import Spelling, spellings
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target

if TYPE_CHECKING:
    from isotrace.attribution.trace import TraceConfig


@dataclass(frozen=True)
class SpellingScores:
    """`values [spellings]` of the target, and of every atom `[spellings, atoms]`, in the order of the molecule, its
    mass, its signed effect and the measured effect of hiding it (NaN where it is not measured); the input's own
    spelling first. `groups [spellings, groups]`: the measured effects of hiding groups of atoms. `correlations`:
    Spearman of each other spelling's signed effects with the first's."""

    smiles: tuple[str, ...]
    values: np.ndarray
    masses: np.ndarray
    effects: np.ndarray
    hidden: np.ndarray
    groups: np.ndarray
    correlations: np.ndarray


@dataclass(frozen=True)
class _Spelled:
    value: float
    masses: np.ndarray
    effects: np.ndarray
    hidden: np.ndarray
    groups: np.ndarray


def numbered(units: tuple[TokenUnit, ...], written: Spelling) -> tuple[TokenUnit, ...]:
    """`units` with the atoms of the molecule that was written instead of their places in the text."""
    return tuple(replace(u, atoms=tuple(written.original[a] for a in u.atoms)) for u in units)


def spelling_scores(
    subject: Subject,
    dictionary: Dictionary,
    written: Spelling,
    mol: Chem.Mol,
    target: Target,
    units: tuple[TokenUnit, ...],
    groups: Sequence[Sequence[int]],
    share: float,
    config: "TraceConfig",
) -> SpellingScores | None:
    """With circuits of `share` of the active features; `groups` of atoms are hidden together. None where it is not
    defined: for a masked token that is no single atom, which other spellings lack, and for what is behind the end."""
    if config.n_spellings == 0 or target.position == len(units):
        return None
    asked = target.place if target.position is None else target.position
    masked = None if asked is None else units[asked]
    if masked is not None and (masked.kind != "atom" or len(masked.atoms) != 1):
        return None
    kept: dict[str, _Spelled] = {}
    for spelling in [written, *spellings(mol, config.n_spellings, config.seed)]:
        result = _spelled(subject, dictionary, spelling, target, masked, groups, share, config)
        if result is not None:
            kept[spelling.smiles] = result
    if len(kept) < 3:
        return None
    found = kept.values()
    names = ("masses", "effects", "hidden", "groups")
    masses, effects, hidden, together = (np.stack([getattr(s, name) for s in found]) for name in names)
    ranks = effects.argsort(1).argsort(1).astype(float)
    with np.errstate(invalid="ignore"):
        correlations = np.asarray([np.corrcoef(ranks[0], row)[0, 1] for row in ranks[1:]])
    return SpellingScores(
        tuple(kept), np.asarray([s.value for s in found]), masses, effects, hidden, together, correlations
    )


def _spelled(
    subject: Subject,
    dictionary: Dictionary,
    spelling: Spelling,
    target: Target,
    masked: TokenUnit | None,
    groups: Sequence[Sequence[int]],
    share: float,
    config: "TraceConfig",
) -> _Spelled | None:
    """None if this spelling does not fit, splits the masked atom, or begins with it where a causal subject has nothing
    to predict it from."""
    try:
        batch: Batch = subject.tokenize([spelling.smiles])
    except InputError:
        return None
    units = numbered(token_map(spelling.smiles, subject.tokens(batch.ids[0]), batch.offsets[0]), spelling)
    goal = target
    if masked is not None:
        places = [i for i, u in enumerate(units) if u.kind == "atom" and u.atoms[0] == masked.atoms[0]]
        if len(places) != 1 or (goal.position is not None and subject.objective == "causal" and places[0] == 0):
            return None
        goal = replace(target, **{"place" if goal.position is None else "position": places[0]})
    prepared = goal.prepare(subject, batch)
    framed = frame(subject, dictionary, prepared, goal)
    graph = build_graph(framed, max_features=config.spelling_features)
    size = min(graph.n_features, max(1, round(share * graph.n_active)))
    parts = Features(dictionary), feature_values(dictionary, config.ablation)
    (circuit,) = halved(subject, *parts, prepared, goal, graph.feature_nodes, [size])
    pruned = prune_to_circuit(graph, circuit, config.node_threshold, config.edge_threshold)
    found = unit_scores(graph, pruned, total_effects(graph), units).atoms
    n = len(spelling.original)
    masses, effects, hidden = np.zeros(n), np.zeros(n), np.full(n, np.nan)
    for atom, (mass, effect) in found.items():
        masses[atom], effects[atom] = mass, effect
    for atom, fall in hidden_effects(subject, prepared, goal, units).items():
        hidden[atom] = fall
    value = float(goal.value(subject, prepared, framed.frozen.actual.final))
    together = np.asarray(group_falls(subject, prepared, goal, units, groups))
    return _Spelled(value, masses, effects, hidden, together)
