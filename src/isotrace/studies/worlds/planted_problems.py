"""A planted subject as a problem for methods, and which of its nodes or edges are true."""

import inspect
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from isotrace.dictionaries.features import Features
from isotrace.discovery.edges.edge_patching import EdgeScores
from isotrace.discovery.methods import Method, Problem, Scores
from isotrace.interventions import Components, Heads, MLPs, Neurons, mean_values
from isotrace.interventions.edges import Edges, component_graph
from isotrace.studies.worlds.planted_subjects import Planted

RESOLUTION = 1e-6
"""Of float32: what is smaller is rounding."""
Reference = Literal["corrupt", "mean"]
COMPONENTS: dict[str, Callable[[Planted], Components]] = {
    "head": lambda _: Heads(),
    "neuron": lambda _: Neurons(),
    "feature": lambda planted: Features(planted.dictionary),
    "mlp": lambda _: MLPs(),
    "edge": lambda _: Edges(),
}


def problem_of(planted: Planted, kind: str, reference: Reference) -> Problem:
    """Nodes take their value on the corrupt input, or their mean over clean and corrupt inputs."""
    subject, mediator = planted.subject, COMPONENTS[kind](planted)
    if reference == "corrupt":
        return Problem.interchange(subject, mediator, planted.clean, planted.corrupt, planted.metric)
    values = mean_values(subject, mediator, [planted.clean, planted.corrupt])
    return Problem(subject, mediator, planted.clean, planted.metric, values)


def effects_of(method: Method, problem: Problem) -> tuple[np.ndarray, float]:
    """(scores `[inputs, nodes]` float64, nodes as in `truth_of`, cost in forward passes)."""
    # all positions of a node at once is what the circuit is made of, and far fewer passes
    whole = "by_position" in inspect.signature(method.run).parameters
    scores: Scores | EdgeScores = method(problem, **({"by_position": False} if whole else {}))
    values = scores.values if isinstance(scores, EdgeScores) else torch.cat(scores.over_positions(), 1)
    return values.detach().double().numpy(), scores.cost


def truth_of(planted: Planted, kind: str) -> Tensor:
    """`[nodes]` bool: in the circuit. Nodes are those of one layer after the other, edges as `component_graph` lists
    them."""
    if kind == "edge":
        graph = component_graph(planted.subject)
        ends = [(graph.components[u], graph.components[v]) for u, v in graph.edges.tolist()]
        return torch.tensor([edge in planted.edges for edge in ends])
    sizes = COMPONENTS[kind](planted).sizes(planted.subject)
    return torch.tensor([(layer, c) in planted.truth[kind] for layer, (n, _) in enumerate(sizes) for c in range(n)])
