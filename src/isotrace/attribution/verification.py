"""Is the circuit the cause? Interventions in the real subject, against matched controls (METHODS §§7, 9)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.attribution.graph import AttributionGraph, Frame
from isotrace.attribution.influence import Pruned, total_effects
from isotrace.attribution.interventions import Ablation, ablate_in_frozen, ablate_in_subject, baseline
from isotrace.subjects.subject import Subject
from isotrace.subjects.targets import Target


@dataclass(frozen=True)
class NodeEffects:
    """Effect of ablating single nodes on the target (clean − ablated): as the graph predicts, in the frozen
    model, in the real free-running subject. `nodes` are indices of feature nodes in the graph."""

    nodes: Tensor
    predicted: Tensor
    frozen: Tensor
    free_running: Tensor


@dataclass(frozen=True)
class CircuitEffects:
    """Sufficiency (M(C) − M(∅)) / (M(full) − M(∅)) and necessity (M(full) − M(¬C)) / (M(full) − M(∅)) of the
    circuit and of its controls; ∅ = every feature ablated. NaN when M(full) and M(∅) coincide."""

    full: float
    empty: float
    sufficiency: float
    necessity: float
    control_sufficiency: np.ndarray
    control_necessity: np.ndarray


def node_effects(
    subject: Subject,
    frame: Frame,
    graph: AttributionGraph,
    pruned: Pruned,
    target: Target,
    *,
    n_nodes: int,
    ablation: Ablation,
    seed: int,
) -> NodeEffects:
    """Half of the nodes are the most influential of the circuit, half are drawn at random from all nodes of the
    graph, so that the correlation is not taken over large effects alone."""
    ranked = pruned.influence[: graph.n_features].argsort(descending=True)
    top = ranked[: n_nodes // 2]
    rest = ranked[n_nodes // 2 :]
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
    nodes = torch.cat([top, rest[order[: n_nodes - len(top)]]])
    located = graph.feature_nodes[nodes]
    clean = float(target.value(subject, frame.batch, frame.frozen.actual.final))
    frozen = graph.preactivation[graph.target] - ablate_in_frozen(frame, located, ablation).double()
    singles = [row[None] for row in located]
    real = ablate_in_subject(
        subject, frame.dictionary, frame.batch, target, singles, complement=False, ablation=ablation, chunk=32
    )
    predicted = ablation_effects(frame, graph, total_effects(graph), ablation)[nodes]
    return NodeEffects(nodes, predicted, frozen, clean - real.double())


def ablation_effects(frame: Frame, graph: AttributionGraph, effects: Tensor, ablation: Ablation) -> Tensor:
    """Predicted fall of the target when each feature is set to its ablated value, `[n_features]` float64.

    `effects` are the total effects of removing it altogether."""
    layer, _, feature = graph.feature_nodes.unbind(1)
    activation = graph.activations.double()
    base = baseline(frame.dictionary, ablation)[layer, feature].double()
    return effects[: graph.n_features] * (activation - base) / activation


def matched_controls(
    frame: Frame, density: Tensor, circuit: Tensor, n_controls: int, seed: int, neighbours: int = 10
) -> list[Tensor]:
    """`n_controls` circuits `[n, 3]` drawn from the features active on this input: for every node of `circuit`
    another node of the same layer, among the `neighbours` closest in activation frequency that are still free.

    Nodes of the circuit itself may be drawn only in a layer that has too few others.
    """
    rng = np.random.default_rng(seed)
    n_layers = len(frame.active.values)
    members = {tuple(row) for row in circuit.tolist()}
    pools = []
    for layer in range(n_layers):
        position, slot = torch.nonzero(frame.active.values[layer] > 0, as_tuple=True)
        feature = frame.active.indices[layer, position, slot]
        outside = [i for i, (p, f) in enumerate(zip(position.tolist(), feature.tolist(), strict=True))
                   if (layer, p, f) not in members]  # fmt: skip
        nodes = torch.stack([torch.full_like(position, layer), position, feature], 1)
        wanted = int((circuit[:, 0] == layer).sum())
        pools.append(nodes[outside] if len(outside) >= wanted else nodes)
    logs = (density.double() + 1e-9).log().numpy()
    frequencies = [logs[layer, pool[:, 2].numpy()] for layer, pool in enumerate(pools)]
    controls = []
    for _ in range(n_controls):
        free = [np.ones(len(pool), dtype=bool) for pool in pools]
        drawn = []
        for layer, _, feature in circuit[torch.from_numpy(rng.permutation(len(circuit)))].tolist():
            distance = np.abs(frequencies[layer] - logs[layer, feature])
            distance[~free[layer]] = np.inf
            available = int(free[layer].sum())
            nearest = np.argpartition(distance, min(neighbours, available) - 1)[: min(neighbours, available)]
            pick = int(rng.choice(nearest))
            free[layer][pick] = False
            drawn.append(pools[layer][pick])
        controls.append(torch.stack(drawn))
    return controls


def circuit_effects(
    subject: Subject,
    frame: Frame,
    target: Target,
    circuit: Tensor,
    *,
    n_controls: int,
    ablation: Ablation,
    seed: int,
) -> CircuitEffects:
    """`circuit` `[n, 3]` against `n_controls` circuits of equal size, all free-running."""
    controls = matched_controls(frame, frame.dictionary.density, circuit, n_controls, seed) if len(circuit) else []
    sets = [circuit, *controls]
    arguments = (subject, frame.dictionary, frame.batch, target)
    kept = ablate_in_subject(*arguments, [*sets, circuit[:0]], complement=True, ablation=ablation)
    removed = ablate_in_subject(*arguments, sets, complement=False, ablation=ablation)
    full = float(target.value(subject, frame.batch, frame.frozen.actual.final))
    empty = float(kept[-1])
    span = full - empty if abs(full - empty) > 1e-6 else float("nan")
    sufficiency = ((kept[:-1].double() - empty) / span).numpy()
    necessity = ((full - removed.double()) / span).numpy()
    return CircuitEffects(full, empty, float(sufficiency[0]), float(necessity[0]), sufficiency[1:], necessity[1:])
