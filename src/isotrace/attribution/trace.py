"""One prediction traced: graph, circuit, atoms, and the evidence that the circuit is the cause.

1. tokenise, parse the target, mask where it says so
2. linearise and build the attribution graph
3. choose the circuit: the fewest features that carry most of the support of the prediction, where support is
   the graph's predicted effect of ablating a feature, signed towards what all features together do; prune
   the graph to it, score, map node mass to atoms, bonds and syntax
4. verify in the real subject: single nodes, then the circuit against matched controls
5. repeat 2 and 3 on randomised spellings of the same molecule
"""

from dataclasses import dataclass

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor

from isotrace.attribution.graph import AttributionGraph, Frame, build_graph, frame
from isotrace.attribution.influence import Pruned, Scores, prune, scores, supporters, total_effects
from isotrace.attribution.interventions import Ablation, ablate_in_subject
from isotrace.attribution.units import UnitScores, unit_scores
from isotrace.attribution.verification import (
    CircuitEffects,
    NodeEffects,
    ablation_effects,
    circuit_effects,
    node_effects,
)
from isotrace.base.errors import InputError, SubjectError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.domains.molecule import TokenUnit, parse, token_map
from isotrace.domains.molecule.spelling import Spelling, spellings
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target, parse_target


@dataclass(frozen=True)
class TraceConfig:
    """Settings of a trace; every one is written to the manifest.

    `max_features`: active features that become nodes. `node_threshold`: share of the support that the circuit's
    features carry (and of the influence that kept errors carry). `edge_threshold`: share of influence that kept
    edges carry. `n_nodes`: single-node ablations. `n_controls`: matched circuits. `n_spellings`: randomised
    spellings (0 = none), traced with at most `spelling_features` nodes each.
    """

    max_features: int = 1_200
    node_threshold: float = 0.7
    edge_threshold: float = 0.98
    ablation: Ablation = "mean"
    n_nodes: int = 96
    n_controls: int = 24
    n_spellings: int = 5
    spelling_features: int = 250
    seed: int = 0


@dataclass(frozen=True)
class SpellingScores:
    """`values` of the target and atom masses `[spellings, atoms]` (original atom order), the input's own
    spelling first. `correlations`: Spearman of each other spelling's atom masses with the first's."""

    smiles: tuple[str, ...]
    values: np.ndarray
    masses: np.ndarray
    correlations: np.ndarray


@dataclass(frozen=True)
class Traced:
    """Everything computed for one input and target; `circuit` lists its feature nodes as indices of the graph."""

    sequence: str
    mol: Chem.Mol
    target: Target
    value: float
    tokens: tuple[str, ...]
    units: tuple[TokenUnit, ...]
    frame: Frame
    graph: AttributionGraph
    pruned: Pruned
    scores: Scores
    effects: Tensor
    unit_scores: UnitScores
    circuit: Tensor
    nodes: NodeEffects
    circuit_effects: CircuitEffects
    by_influence: CircuitEffects
    spellings: SpellingScores | None
    config: TraceConfig


def trace(subject: Subject, dictionary: Dictionary, sequence: str, target: str, config: TraceConfig) -> Traced:
    """Raises InputError for an input or target that cannot be used, SubjectError if the subject reads no molecules."""
    if subject.files.domain != "molecule":
        found = f"is of the domain {subject.files.domain}" if subject.files.domain else "names no domain"
        raise SubjectError(
            f"{subject.source} {found}, and traces support the domain molecule only: give --domain molecule if it "
            "reads SMILES of molecules."
        )
    mol = parse(sequence)
    sequence = sequence.strip()
    batch = subject.tokenize([sequence])
    goal = parse_target(target, subject, batch)
    prepared = goal.prepare(subject, batch)
    framed = frame(subject, dictionary, prepared, goal)
    graph = build_graph(framed, max_features=config.max_features)
    if not graph.n_features:
        raise InputError(f"no feature is active on {sequence!r}: the dictionary cannot explain it.")
    value = float(goal.value(subject, prepared, framed.frozen.actual.final))
    direction = 1.0 if value >= empty_value(subject, framed, goal, config.ablation) else -1.0
    effects = total_effects(graph)
    pruned = prune_to_circuit(framed, graph, effects, direction, config)
    tokens = tuple(subject.tokens(prepared.ids[0]))
    units = token_map(sequence, subject.tokens(batch.ids[0]), batch.offsets[0])
    circuit = torch.nonzero(pruned.nodes[: graph.n_features])[:, 0]
    return Traced(
        sequence=sequence,
        mol=mol,
        target=goal,
        value=value,
        tokens=tokens,
        units=units,
        frame=framed,
        graph=graph,
        pruned=pruned,
        scores=scores(graph),
        effects=effects,
        unit_scores=unit_scores(graph, pruned, effects, units),
        circuit=circuit,
        nodes=node_effects(
            subject, framed, graph, pruned, goal, n_nodes=config.n_nodes, ablation=config.ablation, seed=config.seed
        ),
        circuit_effects=circuit_effects(
            subject,
            framed,
            goal,
            graph.feature_nodes[circuit],
            n_controls=config.n_controls,
            ablation=config.ablation,
            seed=config.seed,
        ),
        by_influence=variant_effects(subject, framed, goal, graph, pruned, len(circuit), config),
        spellings=spelling_scores(subject, dictionary, sequence, mol, goal, units, direction, config),
        config=config,
    )


def empty_value(subject: Subject, framed: Frame, target: Target, ablation: Ablation) -> float:
    """The target with every feature ablated."""
    nothing = [torch.zeros(0, 3, dtype=torch.long)]
    arguments = (subject, framed.dictionary, framed.batch, target, nothing)
    return float(ablate_in_subject(*arguments, complement=True, ablation=ablation)[0])


def prune_to_circuit(
    framed: Frame, graph: AttributionGraph, effects: Tensor, direction: float, config: TraceConfig
) -> Pruned:
    """The graph pruned to the features that carry `node_threshold` of the support.

    Ranking by unsigned influence instead mixes features that push against the prediction into the circuit; on a
    probe, whose value is a sum over all positions, that circuit does no better than matched random ones.
    """
    support = direction * ablation_effects(framed, graph, effects, config.ablation)
    return prune(graph, config.node_threshold, config.edge_threshold, supporters(support, config.node_threshold))


def variant_effects(
    subject: Subject,
    framed: Frame,
    target: Target,
    graph: AttributionGraph,
    pruned: Pruned,
    size: int,
    config: TraceConfig,
) -> CircuitEffects:
    """The same measurements for as many features ranked by unsigned influence, without controls."""
    nodes = pruned.influence[: graph.n_features].argsort(descending=True)[:size]
    arguments = (subject, framed, target, graph.feature_nodes[nodes])
    return circuit_effects(*arguments, n_controls=0, ablation=config.ablation, seed=config.seed)


def spelling_scores(
    subject: Subject,
    dictionary: Dictionary,
    sequence: str,
    mol: Chem.Mol,
    target: Target,
    units: tuple[TokenUnit, ...],
    direction: float,
    config: TraceConfig,
) -> SpellingScores | None:
    """None where it is not defined: for a masked token that is no single atom, which other spellings lack."""
    masked = None if target.position is None else units[target.position]
    if config.n_spellings == 0 or (masked is not None and (masked.kind != "atom" or len(masked.atoms) != 1)):
        return None
    kept, values, rows = [], [], []
    for spelling in [
        Spelling(sequence, tuple(range(mol.GetNumAtoms()))),
        *spellings(mol, config.n_spellings, config.seed),
    ]:
        result = _spelled(subject, dictionary, spelling, target, masked, direction, config)
        if result is not None:
            kept.append(spelling.smiles)
            values.append(result[0])
            rows.append(result[1])
    if len(kept) < 3:
        return None
    masses = np.stack(rows)
    ranks = masses.argsort(1).argsort(1).astype(float)
    with np.errstate(invalid="ignore"):
        correlations = np.asarray([np.corrcoef(ranks[0], row)[0, 1] for row in ranks[1:]])
    return SpellingScores(tuple(kept), np.asarray(values), masses, correlations)


def _spelled(
    subject: Subject,
    dictionary: Dictionary,
    spelling: Spelling,
    target: Target,
    masked: TokenUnit | None,
    direction: float,
    config: TraceConfig,
) -> tuple[float, np.ndarray] | None:
    """(target value, atom masses in original order); None if this spelling does not fit, splits the masked atom, or
    begins with it where a causal subject has nothing to predict it from."""
    try:
        batch: Batch = subject.tokenize([spelling.smiles])
    except InputError:
        return None
    units = token_map(spelling.smiles, subject.tokens(batch.ids[0]), batch.offsets[0])
    goal = target
    if masked is not None:
        places = [
            i for i, u in enumerate(units) if u.kind == "atom" and spelling.original[u.atoms[0]] == masked.atoms[0]
        ]
        if len(places) != 1 or (subject.objective == "causal" and places[0] == 0):
            return None
        goal = Target(**{**target.__dict__, "position": places[0]})
    prepared = goal.prepare(subject, batch)
    framed = frame(subject, dictionary, prepared, goal)
    graph = build_graph(framed, max_features=config.spelling_features)
    effects = total_effects(graph)
    pruned = prune_to_circuit(framed, graph, effects, direction, config)
    found = unit_scores(graph, pruned, effects, units)
    masses = np.zeros(len(spelling.original))
    for atom, (mass, _) in found.atoms.items():
        masses[spelling.original[atom]] = mass
    return float(goal.value(subject, prepared, framed.frozen.actual.final)), masses
