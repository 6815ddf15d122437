"""Ways to choose sets of nodes that reproduce a prediction: registered by name, see `CIRCUITS`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from isotrace.attribution.ablation import Nodes
from isotrace.base.registry import Registry
from isotrace.interventions.components import Components, Values
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target


@dataclass(frozen=True, eq=False)
class Search:
    """Among `candidates [n, 3]` of the one prepared sequence of `batch`, with everything else at `reference`,
    `[components, width]` per layer. `gradient [tokens, d_read]`: of the target in what it reads, on this input."""

    subject: Subject
    components: Components
    reference: Values
    batch: Batch
    target: Target
    gradient: Tensor
    candidates: Nodes
    seed: int


Way = Callable[[Search, Sequence[int]], list[Nodes]]
"""(search, ascending sizes) → a set of each size, every one part of the next."""
_HERE = "isotrace.attribution.circuits"
CIRCUITS: Registry[Way] = Registry(
    "way to choose a circuit", "isotrace.circuits", {"effects": f"{_HERE}.halving", "learned": f"{_HERE}.learned"}
)
