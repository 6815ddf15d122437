"""A circuit seen as a network that falls apart (METHODS §5): a diagnostic, no measure of how good a circuit is.

1. network      features, embeddings and the target of a pruned graph with the edges between them; errors are left out
2. percolation  edges are removed by a rising threshold on |weight|: giant component, susceptibility, components
3. faithfulness features that still lead to the target are kept, all others ablated in the free-running subject
4. null         the same network with its weights shuffled among its edges

Susceptibility is the mean size of the component that a node outside the giant one belongs to, Σ s² / Σ s over all
other components of size s; it peaks where the giant component forms (Stauffer and Aharony, Introduction to Percolation
Theory, 1994, §2). Edges are taken as undirected there, and as directed in step 3. Weights of edges into features are
in units of their pre-activation, those into the target in its own: the threshold compares them all the same.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from isotrace.attribution.ablation import Ablation, ablated, feature_values, rounding
from isotrace.attribution.graph import AttributionGraph, Frame
from isotrace.attribution.influence import Pruned
from isotrace.dictionaries.features import Features
from isotrace.stats.bootstrap import intervals
from isotrace.stats.share import share
from isotrace.subjects.subject import Subject
from isotrace.subjects.targets import Target

BROKEN = 0.5
"""Faithfulness below which a circuit counts as broken."""


@dataclass(frozen=True)
class Network:
    """`nodes [n]`: indices of the graph, ascending, the target last. `sources`, `targets`, `weights [edges]`: places in
    `nodes`, and |weight| > 0. `n_features` of the nodes are features and stand first."""

    nodes: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    n_features: int

    def shuffled(self, rng: np.random.Generator) -> "Network":
        return Network(self.nodes, self.sources, self.targets, rng.permutation(self.weights), self.n_features)

    def leading(self, threshold: float) -> np.ndarray:
        """`[n_features]` bool: features with a directed path to the target over edges with |weight| ≥ threshold."""
        kept, n = self.weights >= threshold, len(self.nodes)
        ends = self.targets[kept], self.sources[kept]
        backwards = csr_array((np.ones(int(kept.sum())), ends), (n, n))
        reached = np.zeros(n, dtype=bool)
        reached[breadth_first_order(backwards, n - 1, return_predecessors=False)] = True
        return reached[: self.n_features]


@dataclass(frozen=True)
class Percolation:
    """One value per threshold, `[thresholds]`, float64: share of the nodes in the largest component (`giant`),
    susceptibility in nodes (0 where nothing is left outside), number of components, 2 · edges / nodes."""

    giant: np.ndarray
    susceptibility: np.ndarray
    components: np.ndarray
    mean_degree: np.ndarray


@dataclass(frozen=True)
class NetworkView:
    """`thresholds`, `edges [thresholds]`: |weight| from which on an edge stays, and how many stay. `faithfulness`,
    `features [thresholds]`: of the circuit left, and its number of features. `shuffled`: the null's percolation, one
    per shuffle; `shuffled_faithfulness [shuffles measured, thresholds]`.

    `percolates`, `breaks`: index of the threshold with the largest susceptibility, and of the first at which
    faithfulness is below `BROKEN`, None where it never is or is undefined. `shuffled_percolates`, `shuffled_breaks`:
    the same for every shuffle.
    """

    network: Network
    thresholds: np.ndarray
    edges: np.ndarray
    curve: Percolation
    faithfulness: np.ndarray
    features: np.ndarray
    shuffled: tuple[Percolation, ...]
    shuffled_faithfulness: np.ndarray

    @property
    def percolates(self) -> int:
        return int(self.curve.susceptibility.argmax())

    @property
    def breaks(self) -> int | None:
        return _first_below(self.faithfulness)

    @property
    def shuffled_percolates(self) -> list[int]:
        return [int(p.susceptibility.argmax()) for p in self.shuffled]

    @property
    def shuffled_breaks(self) -> list[int | None]:
        return [_first_below(row) for row in self.shuffled_faithfulness]

    def to_dict(self) -> dict[str, Any]:
        """What `network.json` and the report hold; curves of the null as mean and central 95 %."""
        null = {}
        for name in (f.name for f in fields(Percolation) if f.name != "mean_degree"):
            rows = np.stack([getattr(p, name) for p in self.shuffled])
            null[name] = {"mean": rows.mean(0)} | dict(zip(("low", "high"), intervals(rows), strict=True))
        null |= {"n": len(self.shuffled), "percolates": self.shuffled_percolates}
        return {
            "kind": "diagnostic",
            "nodes": len(self.network.nodes),
            "threshold": self.thresholds,
            "edges": self.edges,
            "features": self.features,
            "faithfulness": self.faithfulness,
            **{f.name: getattr(self.curve, f.name) for f in fields(Percolation)},
            "percolates": self.percolates,
            "breaks": self.breaks,
            "broken_below": BROKEN,
            "null": null,
        }


def network_of(graph: AttributionGraph, pruned: Pruned) -> Network:
    """Step 1. Nodes without any edge in the pruned graph are left out, but for the target."""
    from_error = (pruned.kept[:, 1] >= graph.errors.start) & (pruned.kept[:, 1] < graph.errors.stop)
    targets, sources = pruned.kept[~from_error].unbind(1)
    keep = torch.zeros(graph.n_nodes, dtype=torch.bool)
    keep[targets], keep[sources] = True, True
    keep &= pruned.nodes
    keep[graph.target] = True
    nodes = torch.nonzero(keep)[:, 0]
    place = torch.full((graph.n_nodes,), -1)
    place[nodes] = torch.arange(len(nodes))
    weights = graph.matrix[targets, sources].abs().double().numpy()
    n_features = int((nodes < graph.n_features).sum())
    return Network(nodes.numpy(), place[sources].numpy(), place[targets].numpy(), weights, n_features)


def grid(network: Network, n: int) -> np.ndarray:
    """At most `n` ascending thresholds that leave from all edges down to one, in equal steps of the logarithm."""
    ordered = np.sort(network.weights)[::-1]
    if not len(ordered):
        return np.zeros(1)
    kept = np.unique(np.geomspace(1, len(ordered), n).round().astype(int))
    return np.unique(ordered[kept - 1])


def percolation(network: Network, thresholds: np.ndarray) -> Percolation:
    """Step 2, at ascending `thresholds`. The same nodes at every one, whatever edges they have left: from the highest
    down, the edges that come in join the components there are."""
    n, rows = len(network.nodes), []
    level = thresholds.searchsorted(network.weights, side="right")
    count, labels, edges = n, np.arange(n), 0
    for k in range(len(thresholds), 0, -1):
        new = np.flatnonzero(level == k)
        ends = labels[network.sources[new]], labels[network.targets[new]]
        count, joined = connected_components(csr_array((np.ones(len(new)), ends), (count, count)), directed=False)
        labels, edges = joined[labels], edges + len(new)
        others = np.sort(np.bincount(labels))[:-1].astype(float)
        susceptibility = (others**2).sum() / others.sum() if len(others) else 0.0
        rows.append((1 - others.sum() / n, susceptibility, float(count), 2 * edges / n))
    return Percolation(*np.asarray(rows[::-1]).T)


def network_view(
    subject: Subject,
    frame: Frame,
    graph: AttributionGraph,
    pruned: Pruned,
    target: Target,
    *,
    ablation: Ablation,
    seed: int,
    n_thresholds: int = 24,
    n_shuffled: int = 20,
    n_shuffled_faithfulness: int = 0,
    spread: float = 0.0,
    chunk: int = 24,
) -> NetworkView:
    """Steps 1 to 4 for one traced input. Faithfulness is 1 − |M(C) − M(full)| / |M(full) − M(∅)|, ∅ = every feature
    ablated; NaN where both coincide, or differ by no more than `spread`, that of the circuit's controls. It is measured
    for the first `n_shuffled_faithfulness` shuffles too.

    Raises ValueError for fewer than 20 shuffles, from which no 95 % interval can be read, or for fewer shuffles than
    are to be measured.
    """
    if n_shuffled < 20 or n_shuffled_faithfulness > n_shuffled:
        raise ValueError("a null takes at least 20 shuffles, and measures no more than it has")
    network, rng = network_of(graph, pruned), np.random.default_rng(seed)
    thresholds = grid(network, n_thresholds)
    nulls = [network.shuffled(rng) for _ in range(n_shuffled)]
    kept = [n.leading(t) for n in (network, *nulls[:n_shuffled_faithfulness]) for t in thresholds]
    nothing = np.zeros(network.n_features, dtype=bool)
    # many thresholds leave the same features: each set is run once
    sets = {row.tobytes(): row for row in [nothing, *kept]}
    located = graph.feature_nodes[torch.from_numpy(network.nodes[: network.n_features])]
    circuits = [located[torch.from_numpy(row)] for row in sets.values()]
    parts = Features(frame.dictionary), feature_values(frame.dictionary, ablation)
    found = ablated(subject, *parts, frame.batch, target, circuits, complement=True, chunk=chunk)
    values = dict(zip(sets, found.double().tolist(), strict=True))
    empty = values[nothing.tobytes()]
    full = float(target.value(subject, frame.batch, frame.frozen.actual.final))
    errors = np.array([abs(values[row.tobytes()] - full) for row in kept]).reshape(-1, len(thresholds))
    faithfulness = 1 - share(errors, abs(full - empty), max(rounding(frame), spread))
    return NetworkView(
        network,
        thresholds,
        np.array([int((network.weights >= t).sum()) for t in thresholds]),
        percolation(network, thresholds),
        faithfulness[0],
        np.array([int(row.sum()) for row in kept[: len(thresholds)]]),
        tuple(percolation(n, thresholds) for n in nulls),
        faithfulness[1:],
    )


def _first_below(faithfulness: np.ndarray) -> int | None:
    below = np.nonzero(faithfulness < BROKEN)[0]
    return int(below[0]) if len(below) and np.isfinite(faithfulness).all() else None
