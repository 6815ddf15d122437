"""The parts of a subject that circuits are made of; one interface for all of them, see `mediator`."""

from isotrace.circuits.mediators.edges import Edges, component_graph
from isotrace.circuits.mediators.features import Features
from isotrace.circuits.mediators.hookpoints import Attentions, Heads, MLPs, Neurons, Residuals
from isotrace.circuits.mediators.mediator import (
    MEDIATORS,
    Edit,
    Mediator,
    Values,
    mean_values,
    mediator_kind,
    register,
    zero_values,
)
from isotrace.circuits.mediators.subspace import Subspaces

__all__ = [
    "MEDIATORS", "Attentions", "Edges", "Edit", "Features", "Heads", "MLPs", "Mediator", "Neurons", "Residuals",
    "Subspaces", "Values", "component_graph", "mean_values", "mediator_kind", "register", "zero_values",
]  # fmt: skip
