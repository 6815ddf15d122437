"""What a method is, the problem it is given and the scores it returns.

A score estimates, or measures, the fall of the metric when one node takes its reference value instead of its own:
M(x) − M(x with z → z′). Positive = the node supports the metric. One file per method, registered by a decorator.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from isotrace.base.errors import InputError, SubjectError
from isotrace.base.registry import Registry
from isotrace.interventions.components import Components, Values
from isotrace.subjects.subject import Batch, Subject

Metric = Callable[[Batch, Tensor], Tensor]
"""(batch, final hidden state `[batch, tokens, d_model]`) → `[batch]`, differentiable."""


@dataclass(frozen=True)
class Problem:
    """One batch, what is measured on it, and what stands in for a node that is patched.

    `reference` broadcasts to the activations: means `[components, width]` per layer, or another input's activations
    `[batch, tokens, components, width]`, which `corrupt` then is, of the same tokens in length.
    """

    subject: Subject
    components: Components
    batch: Batch
    metric: Metric
    reference: Values
    corrupt: Batch | None = None

    def __post_init__(self) -> None:
        self.subject.require_float32("a method that ranks")

    @classmethod
    @torch.no_grad()
    def interchange(
        cls, subject: Subject, components: Components, batch: Batch, corrupt: Batch, metric: Metric
    ) -> "Problem":
        """Patched from `corrupt`. Raises InputError if its sequences are not as long as those of `batch`."""
        if not torch.equal(batch.mask, corrupt.mask):
            raise InputError("clean and corrupt inputs differ in length: pair sequences with equally many tokens.")
        return cls(subject, components, batch, metric, components.record(subject, corrupt)[0], corrupt)

    def value(self) -> Tensor:
        """M(x) `[batch]`, nothing patched."""
        return self.metric(self.batch, self.components.record(self.subject, self.batch)[1])


@dataclass(frozen=True)
class Scores:
    """`values[layer]` `[batch, tokens, components]`, or `[batch, 1, components]` where a node is all positions at
    once; NaN where a node was not asked for. `cost`: forward passes of the batch, a backward pass being two."""

    values: tuple[Tensor, ...]
    cost: float

    def over_positions(self) -> tuple[Tensor, ...]:
        """`[batch, components]` per layer: the sum over positions of the nodes scored."""
        return tuple(v.nansum(1) for v in self.values)


Run = Callable[..., Any]


@dataclass(frozen=True)
class Method:
    """`run(problem, **settings)` gives Scores, or EdgeScores where `ranks` is edge. `exact`: it measures what others
    estimate. `cache`: raised when its code changes its scores, so that stored ones are not used again.
    `refuse(problem)` says why it cannot do what it claims on that subject or mediator, or None."""

    name: str
    run: Run
    ranks: Literal["node", "edge"]
    exact: bool
    refuse: Callable[[Problem], str | None]
    cache: int = 1

    def __call__(self, problem: Problem, **settings: Any) -> Any:
        """Raises SubjectError where it refuses."""
        if reason := self.refuse(problem):
            raise SubjectError(f"{self.name} refuses {problem.subject.source}: {reason}.")
        return self.run(problem, **settings)


_SHIPPED = {
    "acdc": "edges.acdc",
    "attribution_patching": "methods.attribution_patching",
    "cdt": "methods.cdt",
    "eap_ig": "methods.eap_ig",
    "edge_attribution_patching": "edges.edge_patching",
    "edge_integrated_gradients": "edges.edge_patching",
    "graph_aggregate": "methods.graph_aggregate",
    "interchange": "methods.interchange",
    "direct_logit_attribution": "methods.logit_lens",
    "activation_patching": "methods.patching",
    "neuron_paths": "methods.neuron_paths",
    "path_patching": "edges.path_patching",
    "relp": "methods.relp",
}
METHODS: Registry[Method] = Registry(
    "method", "isotrace.methods", {name: f"isotrace.discovery.{module}" for name, module in _SHIPPED.items()}
)
method_of = METHODS.__getitem__


def method(
    name: str,
    *,
    exact: bool = False,
    ranks: Literal["node", "edge"] = "node",
    refuse: Callable[[Problem], str | None] = lambda _: None,
    cache: int = 1,
) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        METHODS.register(name, Method(name, run, ranks, exact, refuse, cache))
        return run

    return add
