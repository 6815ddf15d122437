"""Ways to choose sets of nodes that reproduce a prediction: registered by name, see `CIRCUITS`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from isotrace.attribution.ablation import Nodes
from isotrace.base.registry import Registry
from isotrace.interventions.components import Components, Values
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target


@dataclass(frozen=True, eq=False)
class Search:
    """Among `candidates [n, 3]` of the one prepared sequence of `batch`, with everything else at `reference`,
    `[components, width]` per layer. `known`: what ways found out of the subject as it is, by a name of their own;
    searches of the same subject, batch, target and seed may share it."""

    subject: Subject
    components: Components
    reference: Values
    batch: Batch
    target: Target
    candidates: Nodes
    seed: int
    known: dict[str, Any] = field(default_factory=dict)


Way = Callable[[Search, Sequence[int]], list[Nodes]]
"""(search, ascending sizes) → a set of each size."""
_HERE = "isotrace.attribution.circuits"
CIRCUITS: Registry[Way] = Registry(
    "way to choose a circuit", "isotrace.circuits", {"effects": f"{_HERE}.halving", "learned": f"{_HERE}.learned"}
)
