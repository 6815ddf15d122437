"""Is a circuit the cause of a prediction? Interventions in the real subject, against matched random circuits
(METHODS §§7, 9). `circuits` chooses what is measured here."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.attribution.ablation import (
    Ablation,
    Nodes,
    ablated,
    feature_values,
    rounding,
)
from isotrace.attribution.graph import Frame
from isotrace.dictionaries.features import Features
from isotrace.stats.matching import NEIGHBOURS, log_frequency, matched
from isotrace.stats.share import share
from isotrace.subjects.subject import Subject
from isotrace.subjects.targets import Target

NEARER = 0.95
"""Share of the random circuits that a circuit must come nearer to the model than."""


@dataclass(frozen=True)
class CircuitEffects:
    """The target, in its unit: of the whole subject (`full`), with every feature ablated (`empty`), with the circuit
    alone (`value`), without it (`removed`), and the last two of the controls `[n_controls]`. `noise`: what rounding
    alone can make of a difference between two of them."""

    full: float
    empty: float
    value: float
    removed: float
    control_values: np.ndarray
    control_removed: np.ndarray
    noise: float

    @property
    def error(self) -> float:
        return abs(self.value - self.full)

    @property
    def control_errors(self) -> np.ndarray:
        return np.abs(self.control_values - self.full)

    @property
    def spread(self) -> float:
        """Width of the central 95 % of the controls' values; 0 for fewer than two controls."""
        return float(np.ptp(np.quantile(self.control_values, [0.025, 0.975]))) if len(self.control_values) > 1 else 0.0

    @property
    def kept(self) -> float:
        """1 − |M(C) − M(full)| / |M(full) − M(∅)|; NaN where the span is within the controls' spread, or rounding."""
        return 1 - share(self.error, abs(self.full - self.empty), max(self.noise, self.spread))

    @property
    def lost(self) -> float:
        """|M(full) − M(full without C)| / |M(full) − M(∅)|; NaN as `kept`."""
        return share(abs(self.full - self.removed), abs(self.full - self.empty), max(self.noise, self.spread))

    @property
    def reason(self) -> str | None:
        """Why no circuit of the sizes tried reproduces the prediction; None where one does."""
        if not abs(self.full - self.empty) > self.noise:
            return "ablating every feature leaves the target as it is"
        if not self.error < abs(self.full - self.empty) - self.noise:
            return "ablating every feature leaves the target nearer to the model's than the circuit does"
        if len(self.control_errors) and not self.error < np.quantile(self.control_errors, 1 - NEARER):
            return f"the circuit comes no nearer to the model than {NEARER:.0%} of matched random circuits do"
        return None


def circuit_effects(
    subject: Subject,
    frame: Frame,
    target: Target,
    circuit: Nodes,
    *,
    n_controls: int,
    ablation: Ablation,
    seed: int,
) -> CircuitEffects:
    """`circuit` `[n, 3]` against `n_controls` circuits of equal size, all free-running."""
    controls = matched_controls(frame, frame.dictionary.density, circuit, n_controls, seed) if len(circuit) else []
    sets, nothing = [circuit, *controls], circuit[:0]
    arguments = (subject, Features(frame.dictionary), feature_values(frame.dictionary, ablation), frame.batch, target)
    alone = ablated(*arguments, [nothing, *sets], complement=True).double().numpy()
    without = ablated(*arguments, [nothing, *sets], complement=False).double().numpy()
    # the same two passes by themselves: how far the arithmetic alone takes them apart
    empty, full = (float(ablated(*arguments, [nothing], complement=c)[0]) for c in (True, False))
    noise = max(abs(empty - float(alone[0])), abs(full - float(without[0])), rounding(frame))
    return CircuitEffects(full, empty, float(alone[1]), float(without[1]), alone[2:], without[2:], noise)


def matched_controls(
    frame: Frame, density: Tensor, circuit: Nodes, n_controls: int, seed: int, neighbours: int = NEIGHBOURS
) -> list[Nodes]:
    """`matched_sets` drawn from the features active on this input, by position and feature: a draw does not depend on
    the order in which an encoder hands them on."""
    pools = []
    for layer, values in enumerate(frame.active.values):
        position, slot = torch.nonzero(values.cpu() > 0, as_tuple=True)
        feature = frame.active.indices[layer, position, slot].cpu()
        nodes = torch.stack([torch.full_like(position, layer), position, feature], 1)
        pools.append(nodes[(position * (1 + feature.max()) + feature).argsort()] if len(nodes) else nodes)
    return matched_sets(torch.cat(pools), density, circuit, n_controls, seed, neighbours)


def matched_sets(
    pool: Nodes, density: Tensor, circuit: Nodes, n_controls: int, seed: int, neighbours: int = NEIGHBOURS
) -> list[Nodes]:
    """`n_controls` circuits `[n, 3]` drawn from `pool`: for every node of `circuit`, which is a part of it, another of
    the same layer, among the `neighbours` closest in activation frequency that are still free.

    Nodes of the circuit itself may be drawn only in a layer that has too few others.
    """
    rng = np.random.default_rng(seed)
    members, pools = {tuple(row) for row in circuit.tolist()}, []
    for layer in range(len(density)):
        nodes = pool[pool[:, 0] == layer]
        outside = [i for i, row in enumerate(nodes.tolist()) if tuple(row) not in members]
        wanted = int((circuit[:, 0] == layer).sum())
        pools.append(nodes[outside] if len(outside) >= wanted else nodes)
    logs = log_frequency(density.cpu().numpy())
    frequencies = [logs[layer, nodes[:, 2].numpy()] for layer, nodes in enumerate(pools)]
    layers, own = circuit[:, 0].tolist(), logs[circuit[:, 0].numpy(), circuit[:, 2].numpy()]
    controls = []
    for _ in range(n_controls):
        order, places = matched(layers, own, frequencies, rng, neighbours)
        drawn = zip(order, places, strict=True)
        controls.append(torch.stack([pools[layers[member]][place] for member, place in drawn]))
    return controls
