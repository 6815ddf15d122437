"""The parts of a subject that circuits are made of; one interface for all of them, see `mediator`."""

from isotrace.interventions.component import (
    MEDIATORS,
    Edit,
    Mediator,
    Values,
    mean_values,
    mediator_kind,
    register,
    zero_values,
)
from isotrace.interventions.edges import Edges, component_graph
from isotrace.interventions.hookpoints import Attentions, Heads, MLPs, Neurons, Residuals
from isotrace.interventions.subspace import Subspaces

__all__ = [
    "MEDIATORS", "Attentions", "Edges", "Edit", "Heads", "MLPs", "Mediator", "Neurons", "Residuals",
    "Subspaces", "Values", "component_graph", "mean_values", "mediator_kind", "register", "zero_values",
]  # fmt: skip
