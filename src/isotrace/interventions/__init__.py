"""What acts on a subject: components, where, what, and plans of such interventions. See docs/interventions.md."""

from isotrace.interventions.components import (
    COMPONENTS,
    Components,
    Edit,
    Values,
    Writers,
    components_kind,
    mean_values,
    register,
    zero_values,
)
from isotrace.interventions.edges import Edges, component_graph
from isotrace.interventions.hookpoints import (
    Attentions,
    Embeddings,
    Heads,
    MLPInputs,
    MLPs,
    Neurons,
    Residuals,
)
from isotrace.interventions.plan import Intervention, Plan
from isotrace.interventions.subspace import Subspaces
from isotrace.interventions.what import Add, Apply, Clamp, Scale, Set, To
from isotrace.interventions.where import Nodes, Not, Rows, Select, Units

__all__ = [
    "COMPONENTS", "Add", "Apply", "Attentions", "Clamp", "Components", "Edges", "Edit", "Embeddings", "Heads",
    "Intervention", "MLPInputs", "MLPs", "Neurons", "Nodes", "Not", "Plan", "Residuals", "Rows", "Scale", "Select",
    "Set", "Subspaces", "To", "Units", "Values", "Writers", "component_graph", "components_kind", "mean_values",
    "register", "zero_values",
]  # fmt: skip
