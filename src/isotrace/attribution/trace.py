"""One prediction traced: graph, circuit, atoms, and the evidence that the circuit is the cause.

1. tokenise, parse the target, mask where it says so
2. linearise and build the attribution graph
3. choose the circuit: the features that reproduce the prediction with all others ablated, see `verification`; prune
   the graph to it, score, map node mass to atoms or residues and syntax. What pushes for and against is listed too
4. verify in the running subject: single nodes, then the circuit against matched controls and as many neurons
5. repeat 2 and 3 on other spellings of the same thing, for circuits of the same share of the features

What a text, its tokens and its parts are the subject's domain says.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isotrace.attribution.ablation import Ablation
from isotrace.attribution.atoms.spelled import SpellingScores, read_spelling, spelling_scores
from isotrace.attribution.circuits.choice import Choice, choose_circuit
from isotrace.attribution.circuits.neurons import NeuronEffects, neuron_effects
from isotrace.attribution.circuits.nodes import LiveEffects, NodeEffects, NodeMeter
from isotrace.attribution.graph import AttributionGraph, Frame, build_graph, frame
from isotrace.attribution.influence import Pruned, Scores, prune_to_circuit, scores, supporters
from isotrace.attribution.percolation import NetworkView, network_view
from isotrace.attribution.units import UnitScores, unit_scores
from isotrace.attribution.verification import CircuitEffects, circuit_effects
from isotrace.base.errors import InputError, SubjectError
from isotrace.base.progress import Progress, silent
from isotrace.base.settings import checked_seed
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.domains.domain import Domain, Group, Reading, domain_of
from isotrace.interventions.components import Values, zero_values
from isotrace.interventions.hookpoints import Neurons
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target, end_of, parse_target


@dataclass(frozen=True)
class TraceConfig:
    """Settings of a trace; every one is written to the manifest.

    `circuit`: how it is chosen, one of `CIRCUITS`. `max_features`: active features that become nodes, and
    candidates of the circuit. `sizes`: those of the circuit to try, as shares of the active features; the smallest
    is taken from which on the target stays within `tolerance`, a share of what all features do, of the model's.
    `node_threshold`: share of the support, and of the opposition, that the features listed carry, and of the
    influence that kept errors carry. `edge_threshold`: share of influence that kept edges carry. `n_nodes`: single-
    node ablations. `n_controls`: matched circuits. `n_spellings`: randomised spellings (0 = none), traced with at
    most `spelling_features` nodes each.
    """

    max_features: int = 1_200
    sizes: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2)
    tolerance: float = 0.1
    circuit: str = "learned"
    node_threshold: float = 0.7
    edge_threshold: float = 0.98
    ablation: Ablation = "mean"
    n_nodes: int = 96
    n_controls: int = 24
    n_spellings: int = 5
    spelling_features: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        checked_seed(self.seed)


@dataclass(frozen=True)
class Traced:
    """Everything computed for one input and target. `circuit`, `supporters`, `opponents` list feature nodes as indices
    of the graph: what reproduces the prediction, and what pushes it from where it is with every feature ablated to
    where it is, and back, strongest first. `begun`: why the text is no whole sequence, where it is the beginning of
    one, read by a causal subject; else None. `reading`: of the text as it is, before anything is masked, its elements
    numbered as they came in. `neurons` is None where nobody knows what a neuron is on average. `live`: by how much the
    target falls where a feature is ablated in the running subject; `graph_effects`: in the frozen graph; `effects`:
    where any node is removed from that. `hidden`: see `hidden_effects`; `groups`: the domain's parts of the sequence,
    none of its beginning; `group_falls [groups]`: see the function of that name."""

    domain: Domain
    reading: Reading
    target: Target
    value: float
    tokens: tuple[str, ...]
    frame: Frame
    graph: AttributionGraph
    pruned: Pruned
    scores: Scores
    effects: Tensor
    graph_effects: Tensor
    live: LiveEffects
    unit_scores: UnitScores
    hidden: dict[int, float]
    groups: tuple[Group, ...]
    group_falls: tuple[float, ...]
    circuit: Tensor
    supporters: Tensor
    opponents: Tensor
    begun: str | None
    choice: Choice
    nodes: NodeEffects
    circuit_effects: CircuitEffects
    neurons: NeuronEffects | None
    network: NetworkView
    spellings: SpellingScores | None
    config: TraceConfig


def trace(
    subject: Subject,
    dictionary: Dictionary,
    sequence: str,
    target: str,
    config: TraceConfig,
    *,
    neuron_means: Values | None = None,
    numbers: tuple[int, ...] | None = None,
    progress: Progress = silent,
) -> Traced:
    """`neuron_means`: what an ablated neuron is set to under mean ablation, `[neurons, 1]` per layer. `numbers`: of the
    elements in the order of writing, their number in what was written; None numbers them as written. `progress` is told
    of six steps.

    Raises InputError for an input or target that cannot be used, SubjectError if the subject names no domain."""
    if subject.files.domain is None:
        raise SubjectError(
            f"{subject.source} names no domain, so nothing tells what its tokens stand for: give --domain."
        )
    domain, sequence = domain_of(subject.files.domain), sequence.strip()
    goes_on = subject.objective == "causal" and subject.has_head
    begun = domain.begun(sequence, None if goes_on else subject.source)
    batch = subject.tokenize([sequence])
    goal = parse_target(target, subject, batch)
    end = end_of(subject, batch)
    if end is not None and (begun or goal.position == end):  # nothing stands behind what is asked for
        spans = tuple(row[:end] for row in batch.offsets)
        batch = Batch(batch.ids[:, :end], batch.mask[:, :end], batch.sequences, spans)
    reading = domain.read(sequence, subject.tokens(batch.ids[0]), batch.offsets[0], begun=begun is not None)
    reading = reading if numbers is None else domain.renumbered(reading, numbers)
    prepared = goal.prepare(subject, batch)
    framed = frame(subject, dictionary, prepared, goal)
    steps = iter(progress(range(6), "tracing"))
    step = lambda: next(steps, None)  # noqa: E731
    step()
    graph = build_graph(framed, max_features=config.max_features)
    step()
    if not graph.n_features:
        raise InputError(f"no feature is active on {sequence!r}: the dictionary cannot explain it.")
    way = {"way": config.circuit, "seed": config.seed, "known": {}}  # circuits of features and of neurons share passes
    given = {"ablation": config.ablation, "seed": config.seed}
    sizes = {"shares": config.sizes, "tolerance": config.tolerance, "ablation": config.ablation}
    choice = choose_circuit(subject, framed, goal, graph.feature_nodes, **sizes, **way)
    step()
    measured = circuit_effects(subject, framed, goal, choice.circuit, n_controls=config.n_controls, **given)
    step()
    meter = NodeMeter(subject, framed, graph, goal, config.ablation)
    predicted = meter.measure_largest().predicted
    support = predicted if measured.full >= measured.empty else -predicted
    lists = [strongest(sign * support, config.node_threshold) for sign in (1, -1)]
    pruned = prune_to_circuit(graph, choice.circuit, config.node_threshold, config.edge_threshold)
    means = zero_values(subject, Neurons()) if config.ablation == "zero" else neuron_means
    circuit = torch.nonzero(pruned.nodes[: graph.n_features])[:, 0]
    meter.measure_named(circuit[pruned.influence[circuit].argsort(descending=True)], lists)
    nodes = meter.check(pruned, config.n_nodes, config.seed)
    step()
    network = network_view(subject, framed, graph, pruned, goal, spread=measured.spread, **given)
    share, other = len(choice.circuit) / graph.n_active, replace(config, n_spellings=0) if begun else config
    step()
    groups = () if begun else domain.parts(reading)
    parts = [group.elements for group in groups]
    own = read_spelling(framed, goal, reading.elements, parts)
    spelled = spelling_scores(subject, dictionary, domain, reading, own, parts, share, other)
    step()
    return Traced(
        domain=domain,
        reading=reading,
        target=goal,
        value=own.value,
        tokens=tuple(subject.tokens(prepared.ids[0])),
        frame=framed,
        graph=graph,
        pruned=pruned,
        scores=scores(graph),
        effects=meter.totals,
        graph_effects=meter.graph_effects,
        live=meter.effects,
        unit_scores=unit_scores(graph, pruned, meter.totals, reading.elements),
        hidden=own.hidden,
        groups=groups,
        group_falls=tuple(own.groups),
        circuit=circuit,
        supporters=lists[0],
        opponents=lists[1],
        begun=begun,
        choice=choice,
        nodes=nodes,
        circuit_effects=measured,
        neurons=None if means is None else neuron_effects(subject, framed, goal, means, len(choice.circuit), **way),
        network=network,
        spellings=spelled,
        config=config,
    )


def strongest(support: Tensor, threshold: float) -> Tensor:
    """Places of the fewest values that make up `threshold` of the positive sum, largest first."""
    ranked = support.argsort(descending=True, stable=True)
    return ranked[supporters(support, threshold)[ranked]]
