"""Atoms over the spellings of a molecule: what belongs to the molecule, and what to the way it is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from rdkit import Chem

from isotrace.attribution.ablation import feature_values
from isotrace.attribution.circuits.halving import halved
from isotrace.attribution.graph import Frame, build_graph, frame
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
class Read:
    """One spelling as the subject reads it: frozen, its units and the target at its place in it, and by how much the
    target falls when an atom, or a group of atoms, is hidden."""

    framed: Frame
    units: tuple[TokenUnit, ...]
    target: Target
    hidden: dict[int, float]
    groups: list[float]

    @property
    def value(self) -> float:
        return float(self.target.value(self.framed.frozen.subject, self.framed.batch, self.framed.frozen.actual.final))


def read_spelling(framed: Frame, target: Target, units: tuple[TokenUnit, ...], groups: Sequence[Sequence[int]]) -> Read:
    given = framed.frozen.subject, framed.batch, target, units
    return Read(framed, units, target, hidden_effects(*given), group_falls(*given, groups))


def numbered(units: tuple[TokenUnit, ...], written: Spelling) -> tuple[TokenUnit, ...]:
    """`units` with the atoms of the molecule that was written instead of their places in the text."""
    return tuple(replace(u, atoms=tuple(written.original[a] for a in u.atoms)) for u in units)


def spelling_scores(
    subject: Subject,
    dictionary: Dictionary,
    written: Spelling,
    own: Read,
    mol: Chem.Mol,
    groups: Sequence[Sequence[int]],
    share: float,
    config: "TraceConfig",
) -> SpellingScores | None:
    """`own`: the input as it is written. With graphs of as many features in every spelling, so that they compare, and
    circuits of `share` of the active ones; `groups` of atoms are hidden together. None where it is not defined: for a
    masked token that is no single atom, which other spellings lack, and for what is behind the end."""
    target, units = own.target, own.units
    if config.n_spellings == 0 or target.position == len(units):
        return None
    asked = target.place if target.position is None else target.position
    masked = None if asked is None else units[asked]
    if masked is not None and (masked.kind != "atom" or len(masked.atoms) != 1):
        return None
    others = [s for s in spellings(mol, config.n_spellings, config.seed) if s.smiles != written.smiles]
    reads = (_read(subject, dictionary, spelling, target, masked, groups) for spelling in others)
    at_home = None if _at_home(subject, target, units, masked) is None else own
    found: dict[str, tuple[float, np.ndarray, list[float]]] = {}
    for spelling, read in zip([written, *others], chain([at_home], reads), strict=True):
        if read is not None:
            scores = _scores(subject, dictionary, read, share, config)
            table = [(*scores.get(a, (0.0, 0.0)), read.hidden.get(a, np.nan)) for a in range(mol.GetNumAtoms())]
            found[spelling.smiles] = read.value, np.asarray(table).T, read.groups
    if len(found) < 3:
        return None
    values, tables, together = (np.asarray(part) for part in zip(*found.values(), strict=True))
    masses, effects, hidden = tables.transpose(1, 0, 2)
    ranks = effects.argsort(1).argsort(1).astype(float)
    with np.errstate(invalid="ignore"):
        correlations = np.asarray([np.corrcoef(ranks[0], row)[0, 1] for row in ranks[1:]])
    return SpellingScores(tuple(found), values, masses, effects, hidden, together, correlations)


def _read(
    subject: Subject,
    dictionary: Dictionary,
    spelling: Spelling,
    target: Target,
    masked: TokenUnit | None,
    groups: Sequence[Sequence[int]],
) -> Read | None:
    """None if this spelling does not fit, or has no place for the target."""
    try:
        batch: Batch = subject.tokenize([spelling.smiles])
    except InputError:
        return None
    units = numbered(token_map(spelling.smiles, subject.tokens(batch.ids[0]), batch.offsets[0]), spelling)
    goal = _at_home(subject, target, units, masked)
    if goal is None:
        return None
    return read_spelling(frame(subject, dictionary, goal.prepare(subject, batch), goal), goal, units, groups)


def _at_home(subject: Subject, target: Target, units: tuple[TokenUnit, ...], masked: TokenUnit | None) -> Target | None:
    """The target at the place of the masked atom in a spelling. None if this splits the atom, or begins with it where a
    causal subject has nothing to predict it from."""
    if masked is None:
        return target
    places = [i for i, u in enumerate(units) if u.kind == "atom" and u.atoms[0] == masked.atoms[0]]
    if len(places) != 1 or (target.position is not None and subject.objective == "causal" and places[0] == 0):
        return None
    return replace(target, **{"place" if target.position is None else "position": places[0]})


def _scores(
    subject: Subject, dictionary: Dictionary, read: Read, share: float, config: "TraceConfig"
) -> dict[int, tuple[float, float]]:
    """(mass, signed effect) of every atom."""
    graph = build_graph(read.framed, max_features=config.spelling_features)
    size = min(graph.n_features, max(1, round(share * graph.n_active)))
    parts = Features(dictionary), feature_values(dictionary, config.ablation)
    (circuit,) = halved(subject, *parts, read.framed.batch, read.target, graph.feature_nodes, [size])
    pruned = prune_to_circuit(graph, circuit, config.node_threshold, config.edge_threshold)
    return unit_scores(graph, pruned, total_effects(graph), read.units).atoms
