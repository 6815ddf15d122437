"""The attribution graph of one input and one target (METHODS §§4, 5).

1. freeze      linearise the subject on the input; encode its MLP inputs; error e_l = m_l − m̂_l
2. constants   one frozen pass with every source at zero: what biases alone put at every node
3. target row  edges from every source into the target: activation × write vector · Jacobian · read vector
4. feature rows the same for active features, most influential first, until the budget is used up
5. assemble    the selected nodes and the edges between them

A source is an active feature (layer, position, feature), an error (layer, position), or an embedding: of a token
or, where the subject has them, a position; twice each in an encoder–decoder. Σ edges + constant = pre-activation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from isotrace.attribution.edge_rows import EdgeRows, KnownRows, Writes
from isotrace.base.errors import InputError
from isotrace.dictionaries.dictionary import Dictionary, SparseActivations
from isotrace.subjects.frozen import FrozenSubject
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target

MEMORY = 1 << 30
"""Bytes that the rows of a growing graph, its matrix, and the attention patterns of a batch may take, each."""


@dataclass(frozen=True)
class Frame:
    """One input, frozen, with its features: what edges and interventions are computed from.

    `indices`, `values` `[n_layers, tokens, k]` (value 0 = unused slot), `errors [n_layers, tokens, d]`, `writes`:
    activation × decoder rows.
    """

    frozen: FrozenSubject
    dictionary: Dictionary
    batch: Batch
    active: SparseActivations
    errors: Tensor
    writes: Writes
    gradient: Tensor
    constant: float

    @property
    def n_tokens(self) -> int:
        return self.batch.ids.shape[1]


@dataclass(frozen=True)
class AttributionGraph:
    """Nodes in the order features, errors (layer-major), embeddings as `Subject.embeddings` orders them, target.

    `feature_nodes [n_features, 3]` = (layer, position, feature). `matrix [n, n]`: row = target of the edge,
    column = source. `preactivation`, `constant`, `unselected` per row: matrix.sum(1) + constant + unselected =
    preactivation for feature and target rows; `unselected` is what active features outside the budget add.
    `embeddings`: (kind, shift) of every n_tokens embedding nodes, see `subjects.subject.Embedding`.
    """

    feature_nodes: Tensor
    activations: Tensor
    matrix: Tensor
    preactivation: Tensor
    constant: Tensor
    unselected: Tensor
    n_layers: int
    n_tokens: int
    embeddings: tuple[tuple[str, int], ...]
    n_active: int

    @property
    def n_features(self) -> int:
        return len(self.feature_nodes)

    @property
    def n_nodes(self) -> int:
        return len(self.matrix)

    @property
    def errors(self) -> slice:
        return slice(self.n_features, self.n_features + self.n_layers * self.n_tokens)

    @property
    def tokens(self) -> slice:
        """Embeddings of every kind."""
        return slice(self.errors.stop, self.n_nodes - 1)

    @property
    def target(self) -> int:
        return self.n_nodes - 1

    @property
    def rows(self) -> Tensor:
        """The nodes that edges lead to, features and the target, `[n_features + 1]`."""
        return torch.cat([torch.arange(self.n_features), torch.tensor([self.target])])

    def completeness_error(self) -> float:
        """Largest |Σ edges + constant − pre-activation| / (Σ |edges| + |constant|) over feature and target rows."""
        rows = self.rows
        edges = self.matrix[rows].double()
        found = edges.sum(1) + self.constant[rows] + self.unselected[rows]
        scale = edges.abs().sum(1) + self.constant[rows].abs()
        return float(((found - self.preactivation[rows]).abs() / scale).max())

    def layer_of(self, node: int) -> int:
        """-1 for embeddings, n_layers for the target."""
        if node < self.n_features:
            return int(self.feature_nodes[node, 0])
        if node < self.errors.stop:
            return (node - self.n_features) // self.n_tokens
        return self.n_layers if node == self.target else -1

    def position_of(self, node: int) -> int | None:
        """None for the target."""
        if node < self.n_features:
            return int(self.feature_nodes[node, 1])
        if node < self.errors.stop:
            return (node - self.n_features) % self.n_tokens
        group, place = divmod(node - self.tokens.start, self.n_tokens)
        return None if node == self.target else max(0, place - self.embeddings[group][1])

    def kind_of(self, node: int) -> str:
        if node < self.n_features:
            return "feature"
        if node < self.errors.stop:
            return "error"
        return "target" if node == self.target else self.embeddings[(node - self.tokens.start) // self.n_tokens][0]


@torch.no_grad()
def frame(subject: Subject, dictionary: Dictionary, batch: Batch, target: Target) -> Frame:
    """Step 1: freeze and encode. `batch` holds one sequence, already prepared for the target."""
    frozen = FrozenSubject(subject, batch, target.reads)
    config = dictionary.config
    encoded = [dictionary.encode(layer, frozen.actual.mlp_in[layer][0]) for layer in range(config.n_layers)]
    active = SparseActivations.stack(encoded)
    writes = Writes.of(dictionary, active)
    errors = torch.stack([m[0] for m in frozen.sources.mlp_out]) - writes.reconstructed()
    with torch.enable_grad():
        gradient, constant = target.linear(frozen)
    return Frame(frozen, dictionary, batch, active, errors, writes, gradient, constant)


def normalise(rows: Tensor) -> Tensor:
    """|rows| scaled to sum to one each; an all-zero row stays zero."""
    absolute = rows.abs()
    return absolute / absolute.sum(-1, keepdim=True).clamp(min=1e-30)


def build_graph(
    frame: Frame, *, max_features: int, batch_size: int | None = None, memory: int = MEMORY
) -> AttributionGraph:
    """Steps 2 to 5. At most `max_features` active features become nodes; long inputs get smaller batches.

    `memory` bounds in bytes what grows with the input: the rows, the final matrix, the attention patterns of a
    batch. Where all active features do not fit beside the rows, those with the least influence so far are given up:
    they cannot become nodes, and what they add is in `unselected`. Edges that are kept stay exact. Raises InputError
    where even `max_features` nodes do not fit.
    """
    patterns = sum(pattern.numel() * pattern.element_size() for pattern in frame.frozen.patterns.values())
    # rows of about a thousand tokens stay in the cache on their way through a layer
    batch_size = batch_size or max(1, min(64, max(4, 1_024 // frame.n_tokens), memory // max(1, patterns)))
    edges, values = EdgeRows(frame, batch_size), frame.active.values.flatten().cpu()
    budget, others = min(max_features, int((values > 0).sum())), edges.n_columns - edges.n_slots
    if (budget + others + 1) ** 2 * values.element_size() > memory:
        raise InputError(
            f"a graph of {budget + others + 1} nodes needs more than {memory >> 20} MiB: lower max_features, give more "
            "memory or shorten the input."
        )
    row, constant = edges.target_row()
    known, constants = KnownRows(row, (values > 0).nonzero()[:, 0], edges.n_slots), [torch.tensor([constant])]
    while len(known.columns) < budget:
        step = min(budget - len(known.columns), max(256, budget // 4))
        influence, visited = known.influence(), known.places(known.columns)
        room = memory // (values.element_size() * (1 + len(known.columns) + step)) - others
        if room < len(known.slots):
            influence[visited] = torch.inf
            best = influence.topk(room).indices.sort().values
            known.keep(best)
            influence, visited = influence[best], known.places(known.columns)
        influence[visited] = -1
        chosen = known.slots[influence.topk(step).indices.sort().values].tolist()
        for rows, left_out, extra in edges.feature_rows(chosen, known.slots):
            known.add(rows, left_out)
            constants.append(extra)
        known.columns += chosen
    return _assemble(frame, edges, known, torch.cat(constants))


def _assemble(frame: Frame, edges: EdgeRows, known: KnownRows, constants: Tensor) -> AttributionGraph:
    order = sorted(range(len(known.columns)), key=lambda i: known.columns[i])
    columns = [known.columns[i] for i in order]
    located = torch.tensor([edges.slot(c) for c in columns], dtype=torch.long).reshape(-1, 3)
    layer, position, slot = located.unbind(1)
    features = frame.active.indices[layer, position, slot].cpu()
    n_slots, chosen = len(known.slots), known.places(columns)
    n_nodes = len(columns) + edges.n_columns - edges.n_slots + 1
    missing = torch.ones(n_slots, dtype=torch.bool)
    missing[chosen] = False
    kept = torch.cat([chosen, torch.arange(n_slots, known.blocks[0].shape[1])])
    # rows of the blocks → rows of the matrix: the target's comes first there and last here
    places = torch.empty(len(columns) + 1, dtype=torch.long)
    places[0], places[1 + torch.tensor(order, dtype=torch.long)] = n_nodes - 1, torch.arange(len(columns))
    matrix, at = torch.zeros(n_nodes, n_nodes), 0
    per_node = {name: torch.zeros(n_nodes, dtype=torch.float64) for name in ("pre", "constant", "unselected")}
    for block, left_out in zip(known.blocks, known.left_out, strict=True):
        rows = places[at : at + len(block)]
        matrix[rows, : n_nodes - 1] = block[:, kept]
        per_node["unselected"][rows] = block[:, :n_slots][:, missing].double().sum(1) + left_out[:, 1]
        at += len(block)
    activations = frame.active.values[layer, position, slot].cpu()
    value = float((frame.gradient.double() * frame.frozen.actual.final[0].double()).sum()) + frame.constant
    per_node["pre"][: len(columns)], per_node["pre"][-1] = activations.double(), value
    per_node["constant"][places] = constants.double()
    return AttributionGraph(
        torch.stack([layer, position, features], 1),
        activations,
        matrix,
        per_node["pre"],
        per_node["constant"],
        per_node["unselected"],
        edges.n_layers,
        edges.n_tokens,
        tuple((e.kind, e.shift) for e in frame.frozen.subject.embeddings),
        int((frame.active.values > 0).sum()),
    )
