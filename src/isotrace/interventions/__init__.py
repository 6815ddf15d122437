"""What acts on a subject: components, where, what, and plans of such interventions. See docs/interventions.md."""

from isotrace.interventions.components import (
    COMPONENTS,
    Components,
    Edit,
    Values,
    components_kind,
    mean_values,
    register,
    zero_values,
)
from isotrace.interventions.edges import Edges, component_graph
from isotrace.interventions.hookpoints import (
    AlongNeurons,
    Attentions,
    Embeddings,
    HeadInputs,
    Heads,
    Hookpoints,
    MLPInputs,
    MLPs,
    Neurons,
    Residuals,
)
from isotrace.interventions.plan import Intervention, Plan
from isotrace.interventions.subspace import Subspaces
from isotrace.interventions.what import (
    Add,
    AddShare,
    Affine,
    Along,
    Apply,
    Clamp,
    Inject,
    Normed,
    Only,
    Scale,
    Set,
    Then,
    To,
)
from isotrace.interventions.where import Marked, Nodes, Not, Rows, Select, Tokens, Units
from isotrace.interventions.writers import Writers

__all__ = [
    "COMPONENTS", "Add", "AddShare", "Affine", "Along", "AlongNeurons", "Apply", "Attentions", "Clamp", "Components",
    "Edges", "Edit", "Embeddings", "HeadInputs", "Heads", "Hookpoints", "Inject", "Intervention", "MLPInputs", "MLPs",
    "Marked", "Neurons", "Nodes", "Normed", "Not", "Only", "Plan", "Residuals", "Rows", "Scale", "Select", "Set",
    "Subspaces", "Then", "To", "Tokens", "Units", "Values", "Writers", "component_graph", "components_kind",
    "mean_values", "register", "zero_values",
]  # fmt: skip
