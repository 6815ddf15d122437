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

from isotrace.circuits.targets import Target
from isotrace.dictionaries.dictionary import Dictionary, SparseActivations
from isotrace.subjects.frozen import FrozenSubject, Sources
from isotrace.subjects.subject import Batch, Subject


@dataclass(frozen=True)
class Frame:
    """One input, frozen, with its features: what edges and interventions are computed from.

    `indices`, `values` `[n_layers, tokens, k]` (value 0 = unused slot), `errors [n_layers, tokens, d]`,
    `writes[s] [tokens, k, n_targets, d]` = activation × decoder rows.
    """

    frozen: FrozenSubject
    dictionary: Dictionary
    batch: Batch
    active: SparseActivations
    errors: Tensor
    writes: tuple[Tensor, ...]
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

    def completeness_error(self) -> float:
        """Largest |Σ edges + constant − pre-activation| / (Σ |edges| + |constant|) over feature and target rows."""
        rows = [*range(self.n_features), self.target]
        edges = self.matrix.double()[rows]
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
    frozen = FrozenSubject(subject, batch)
    config = dictionary.config
    encoded = [dictionary.encode(layer, frozen.actual.mlp_in[layer][0]) for layer in range(config.n_layers)]
    active = SparseActivations.stack(encoded)
    writes = tuple(
        active.values[s][..., None, None] * dictionary.write_vectors(s, active.indices[s])
        for s in range(config.n_layers)
    )
    reconstructed = reconstruct(dictionary, writes)
    errors = torch.stack([m[0] for m in frozen.sources.mlp_out]) - reconstructed
    with torch.enable_grad():
        gradient, constant = target.linear(frozen)
    return Frame(frozen, dictionary, batch, active, errors, writes, gradient, constant)


def reconstruct(dictionary: Dictionary, writes: tuple[Tensor, ...]) -> Tensor:
    """m̂ `[n_layers, ..., d]`: what the features write, plus the decoder biases."""
    totals = [bias.expand_as(writes[0][..., 0, 0, :]) for bias in dictionary.b_dec]
    for source, write in enumerate(writes):
        for slot, target in enumerate(dictionary.config.targets(source)):
            totals[target] = totals[target] + write[..., slot, :].sum(-2)
    return torch.stack(totals)


class EdgeRows:
    """Rows of the full edge matrix, computed on demand by batched backward passes through the frozen subject.

    Columns: every feature slot (layer, position, slot), then errors, then embeddings.
    """

    def __init__(self, frame: Frame, batch_size: int) -> None:
        self.frame, self.batch_size = frame, batch_size
        sources = frame.frozen.sources
        n_layers, n_tokens, k = frame.active.values.shape
        self.n_slots, self.n_layers, self.n_tokens, self.k = n_layers * n_tokens * k, n_layers, n_tokens, k
        self.n_columns = self.n_slots + (n_layers + len(sources.embeddings)) * n_tokens
        self.flat_writes = [w.flatten(2) for w in frame.writes]
        self.leaves = sources.map(lambda t: t.new_zeros(batch_size, *t.shape[1:]).requires_grad_(True))
        with torch.enable_grad():
            self.replay = frame.frozen.replay(self.leaves)
        with torch.no_grad():
            zero, biases = sources.map(torch.zeros_like), [b.expand(1, n_tokens, -1) for b in frame.dictionary.b_dec]
            self.constants = frame.frozen.replay(Sources(zero.embeddings, tuple(biases)))

    def slot(self, column: int) -> tuple[int, int, int]:
        layer, rest = divmod(column, self.n_tokens * self.k)
        return layer, rest // self.k, rest % self.k

    def target_row(self) -> tuple[Tensor, float]:
        """(`[n_columns]`, constant)."""
        gradient = torch.zeros_like(self.replay.final)
        gradient[0] = self.frame.gradient
        row = self._edges(self.replay.final, gradient, self.n_layers)[0]
        return row, float((self.constants.final[0] * self.frame.gradient).sum()) + self.frame.constant

    def feature_rows(self, columns: list[int]) -> tuple[Tensor, Tensor]:
        """(`[len(columns), n_columns]`, constants `[len(columns)]`) for feature slots."""
        rows = torch.zeros(len(columns), self.n_columns)
        constants = torch.zeros(len(columns))
        by_layer: dict[int, list[int]] = {}
        for place, column in enumerate(columns):
            by_layer.setdefault(self.slot(column)[0], []).append(place)
        for layer, places in by_layer.items():
            for at in range(0, len(places), self.batch_size):
                part = places[at : at + self.batch_size]
                located = [self.slot(columns[place]) for place in part]
                positions = torch.tensor([p for _, p, _ in located])
                features = self.frame.active.indices[layer, positions, torch.tensor([j for _, _, j in located])]
                read = self.frame.dictionary.W_enc[layer][:, features].T
                gradient = torch.zeros_like(self.replay.mlp_in[layer])
                gradient[torch.arange(len(part)), positions] = read
                rows[part] = self._edges(self.replay.mlp_in[layer], gradient, layer)[: len(part)]
                constants[part] = (self.constants.mlp_in[layer][0, positions] * read).sum(-1)
                constants[part] += self.frame.dictionary.b_enc[layer][features]
        return rows, constants

    def _edges(self, output: Tensor, gradient: Tensor, layer: int) -> Tensor:
        """`[batch_size, n_columns]`: sources below `layer` against the backpropagated gradient."""
        n_embeddings = len(self.leaves.embeddings)
        wanted = self.leaves.tensors()[: n_embeddings + layer]
        found = torch.autograd.grad(output, wanted, gradient, retain_graph=True, allow_unused=True)
        grads = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]
        on_embeddings, on_mlp = grads[:n_embeddings], grads[n_embeddings:]
        rows = torch.zeros(len(gradient), self.n_columns)
        sources, per_layer = self.frame.frozen.sources, self.n_tokens * self.k
        for source in range(layer):
            reached = [t for t in self.frame.dictionary.config.targets(source) if t < layer]
            stacked = torch.cat([on_mlp[t] for t in reached], -1).transpose(0, 1)  # [tokens, batch, n·d]
            edges = stacked @ self.flat_writes[source][..., : stacked.shape[-1]].transpose(1, 2)  # [tokens, batch, k]
            rows[:, source * per_layer : (source + 1) * per_layer] = edges.transpose(0, 1).flatten(1)
            at = self.n_slots + source * self.n_tokens
            rows[:, at : at + self.n_tokens] = (on_mlp[source] * self.frame.errors[source]).sum(-1)
        at = self.n_slots + self.n_layers * self.n_tokens
        for grad, value in zip(on_embeddings, sources.embeddings, strict=True):
            rows[:, at : at + self.n_tokens] = (grad * value).sum(-1)
            at += self.n_tokens
        return rows


def normalise(rows: Tensor) -> Tensor:
    """|rows| scaled to sum to one each; an all-zero row stays zero."""
    absolute = rows.abs()
    return absolute / absolute.sum(-1, keepdim=True).clamp(min=1e-30)


def build_graph(frame: Frame, *, max_features: int, batch_size: int | None = None) -> AttributionGraph:
    """Steps 2 to 5. At most `max_features` active features become nodes; long inputs get smaller batches."""
    batch_size = batch_size or max(4, min(64, 4_096 // frame.n_tokens))
    edges = EdgeRows(frame, batch_size)
    values = frame.active.values.flatten()
    budget = min(max_features, int((values > 0).sum()))
    row, constant = edges.target_row()
    rows, constants, columns = row[None], torch.tensor([constant]), []
    visited = values <= 0
    while len(columns) < budget:
        influence = _influence(rows, columns, edges.n_slots)
        influence[visited] = -1
        step = min(budget - len(columns), max(4 * batch_size, budget // 4))
        chosen = influence.topk(step).indices.sort().values.tolist()
        new, extra = edges.feature_rows(chosen)
        rows, constants = torch.cat([rows, new]), torch.cat([constants, extra])
        columns += chosen
        visited[chosen] = True
    return _assemble(frame, edges, rows, constants, columns)


def _influence(rows: Tensor, columns: list[int], n_slots: int) -> Tensor:
    """Influence of every feature slot on the target through the rows known so far, `[n_slots]`."""
    normalised = normalise(rows)
    weights = torch.zeros(len(rows))
    weights[0] = 1.0
    total = normalised[0]
    for _ in range(64):
        following = torch.zeros_like(weights)
        following[1:] = total[columns]
        following[0] = 1.0
        if torch.allclose(following, weights, rtol=1e-4, atol=1e-9):
            break
        weights = following
        total = weights @ normalised
    return total[:n_slots].clone()


def _assemble(frame: Frame, edges: EdgeRows, rows: Tensor, constants: Tensor, columns: list[int]) -> AttributionGraph:
    order = sorted(range(len(columns)), key=lambda i: columns[i])
    rows = torch.cat([rows[1:][order], rows[:1]])
    constants = torch.cat([constants[1:][order], constants[:1]])
    columns = sorted(columns)
    located = torch.tensor([edges.slot(c) for c in columns], dtype=torch.long).reshape(-1, 3)
    layer, position, slot = located.unbind(1)
    features = frame.active.indices[layer, position, slot]
    others = list(range(edges.n_slots, edges.n_columns))
    n_nodes = len(columns) + len(others) + 1
    matrix = torch.zeros(n_nodes, n_nodes)
    places = torch.tensor([*range(len(columns)), n_nodes - 1])
    matrix[places, : n_nodes - 1] = rows[:, columns + others]
    missing = torch.ones(edges.n_slots, dtype=torch.bool)
    missing[columns] = False
    per_node = {name: torch.zeros(n_nodes, dtype=torch.float64) for name in ("pre", "constant", "unselected")}
    activations = frame.active.values[layer, position, slot]
    value = float((frame.gradient.double() * frame.frozen.actual.final[0].double()).sum()) + frame.constant
    per_node["pre"][places] = torch.cat([activations, activations.new_tensor([value])]).double()
    per_node["constant"][places] = constants.double()
    per_node["unselected"][places] = rows[:, : edges.n_slots][:, missing].double().sum(1)
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
