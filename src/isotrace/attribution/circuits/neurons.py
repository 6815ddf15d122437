"""As many neurons as a circuit has features, chosen in the same way: what stands beside every circuit."""

from dataclasses import dataclass
from typing import Any

import torch

from isotrace.attribution.ablation import ablated
from isotrace.attribution.circuits.search import CIRCUITS, Search
from isotrace.attribution.graph import Frame
from isotrace.interventions.components import Values
from isotrace.interventions.hookpoints import Neurons
from isotrace.subjects.subject import Subject
from isotrace.subjects.targets import Target


@dataclass(frozen=True)
class NeuronEffects:
    """As many neurons as the circuit has nodes, alone: `value` of the target, `empty` with every neuron ablated."""

    n: int
    value: float
    empty: float


def neuron_effects(
    subject: Subject, frame: Frame, target: Target, means: Values, n: int, *, way: str = "effects", seed: int = 0,
    known: dict[str, Any] | None = None,
) -> NeuronEffects:  # fmt: skip
    """`n` neurons, of all at all positions, chosen as the circuit is; the others stand at `means`. `known`: see
    `Search`."""
    sizes = [len(values) for values in means]
    parts = [torch.cartesian_prod(torch.tensor([layer]), torch.arange(frame.n_tokens), torch.arange(size))
             for layer, size in enumerate(sizes)]  # fmt: skip
    everything = torch.cat(parts)
    arguments = (subject, Neurons(), means, frame.batch, target)
    search = Search(*arguments, everything, seed, {} if known is None else known)
    (chosen,) = CIRCUITS[way](search, [min(n, len(everything))])
    value, empty = ablated(*arguments, [chosen, everything[:0]], complement=True).tolist()
    return NeuronEffects(len(chosen), value, empty)
