"""Rows of the edge matrix of an attribution graph: computed on demand, and kept within a bounded amount of memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isotrace.dictionaries.dictionary import Dictionary, SparseActivations
from isotrace.subjects.frozen import Sources

if TYPE_CHECKING:
    from isotrace.attribution.graph import Frame


HELD = 1 << 30
"""Bytes up to which what all features write is kept."""
BLOCK = 1 << 24
"""Numbers that are made at a time of what is not kept."""


@dataclass(frozen=True)
class Writes:
    """Of the features `active [n_layers, tokens, k]` of one input. `held[s] [tokens, k, n_targets, d]`, or None: all of
    a crosslayer transcoder's writes would take window / 2 times as much as its largest layer."""

    dictionary: Dictionary
    active: SparseActivations
    held: tuple[Tensor, ...] | None

    @classmethod
    def of(cls, dictionary: Dictionary, active: SparseActivations) -> "Writes":
        config, values = dictionary.config, active.values
        width = config.d_out * sum(len(config.targets(s)) for s in range(config.n_layers))
        made = cls(dictionary, active, None)
        if values[0].numel() * width * values.element_size() > HELD:
            return made
        return cls(dictionary, active, tuple(made[s] for s in range(config.n_layers)))

    def __getitem__(self, source: int) -> Tensor:
        return self._of(source, slice(None)) if self.held is None else self.held[source]

    def _of(self, source: int, tokens: slice) -> Tensor:
        values, indices = self.active.values[source, tokens], self.active.indices[source, tokens]
        return values[..., None, None] * self.dictionary.write_vectors(source, indices)

    def blocks(self, source: int) -> Iterator[tuple[slice, Tensor]]:
        """(places, writes there): all tokens where they are kept, else as many as make a block."""
        if self.held is not None:
            yield slice(None), self.held[source]
            return
        n_tokens, k = self.active.values.shape[1:]
        step = max(1, BLOCK // (k * self.dictionary.W_dec[source].shape[1]))
        for at in range(0, n_tokens, step):
            tokens = slice(at, at + step)
            yield tokens, self._of(source, tokens)

    def times(self, source: int, gradients: Tensor) -> Tensor:
        """`[tokens, rows, k]`: of every feature of layer `source` what it writes to the first of its targets, against
        `gradients [tokens, rows, n_targets · d]` there."""
        parts = [
            gradients[tokens] @ writes.flatten(2)[..., : gradients.shape[-1]].transpose(1, 2)
            for tokens, writes in self.blocks(source)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def reconstructed(self) -> Tensor:
        """m̂ `[n_layers, tokens, d]`: what all features write, plus the decoder biases."""
        totals = [bias.expand(self.active.values.shape[1], -1) for bias in self.dictionary.b_dec]
        for source in range(self.dictionary.config.n_layers):
            targets = self.dictionary.config.targets(source)
            summed = [[w[..., slot, :].sum(-2) for slot in range(len(targets))] for _, w in self.blocks(source)]
            for target, parts in zip(targets, zip(*summed, strict=True), strict=True):
                totals[target] = totals[target] + torch.cat(parts)
        return torch.stack(totals)


class EdgeRows:
    """Rows of the full edge matrix, computed on demand by batched backward passes through the frozen subject.

    Columns: every feature slot (layer, position, slot), then errors, then embeddings.
    """

    def __init__(self, frame: "Frame", batch_size: int) -> None:
        self.frame, self.batch_size = frame, batch_size
        sources = frame.frozen.sources
        n_layers, n_tokens, k = frame.active.values.shape
        self.n_slots, self.n_layers, self.n_tokens, self.k = n_layers * n_tokens * k, n_layers, n_tokens, k
        self.n_columns = self.n_slots + (n_layers + len(sources.embeddings)) * n_tokens
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
        row = self._edges([self.replay.final], [gradient], self.n_layers)[0]
        return row, float((self.constants.final[0] * self.frame.gradient).sum()) + self.frame.constant

    def feature_rows(self, columns: list[int], slots: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows of the feature slots `columns` (ascending), at most `batch_size` at a time: edges `[rows, len(slots) +
        others]` from the feature slots `slots` (ascending), errors and embeddings; (Σ|edge|, Σ edge) over all other
        feature slots `[rows, 2]` float64; constants `[rows]`."""
        kept, gone = torch.cat([slots, torch.arange(self.n_slots, self.n_columns)]), _others(slots, self.n_slots)
        for at in range(0, len(columns), self.batch_size):  # whole batches: rows of several layers share a pass
            located = [self.slot(column) for column in columns[at : at + self.batch_size]]
            gradients, constants, n = {}, [], 0
            for layer, group in groupby(located, key=lambda place: place[0]):
                _, positions, places = torch.tensor([*group]).unbind(1)
                features = self.frame.active.indices[layer, positions, places]
                read = self.frame.dictionary.W_enc[layer][:, features].T
                gradients[layer] = torch.zeros_like(self.replay.mlp_in[layer])
                gradients[layer][torch.arange(n, n + len(positions)), positions] = read
                own = (self.constants.mlp_in[layer][0, positions] * read).sum(-1)
                constants.append(own + self.frame.dictionary.b_enc[layer][features])
                n += len(positions)
            outputs = [self.replay.mlp_in[layer] for layer in gradients]
            edges = self._edges(outputs, [*gradients.values()], max(gradients))[:n]
            yield edges[:, kept], sums(edges[:, : self.n_slots][:, gone]), torch.cat(constants).cpu()

    def _edges(self, outputs: list[Tensor], gradients: list[Tensor], layer: int) -> Tensor:
        """`[batch_size, n_columns]`: sources below `layer` against the backpropagated gradients; those that a row's own
        output does not hear of get none."""
        n_embeddings, gradient = len(self.leaves.embeddings), gradients[0]
        wanted = self.leaves.tensors()[: n_embeddings + layer]
        found = torch.autograd.grad(outputs, wanted, gradients, retain_graph=True, allow_unused=True)
        grads = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]
        on_embeddings, on_mlp = grads[:n_embeddings], grads[n_embeddings:]
        rows = gradient.new_zeros(len(gradient), self.n_columns)
        sources, per_layer = self.frame.frozen.sources, self.n_tokens * self.k
        for source in range(layer):
            reached = [t for t in self.frame.dictionary.config.targets(source) if t < layer]
            stacked = torch.cat([on_mlp[t] for t in reached], -1).transpose(0, 1)  # [tokens, batch, n·d]
            edges = self.frame.writes.times(source, stacked)  # [tokens, batch, k]
            rows[:, source * per_layer : (source + 1) * per_layer] = edges.transpose(0, 1).flatten(1)
            at = self.n_slots + source * self.n_tokens
            rows[:, at : at + self.n_tokens] = (on_mlp[source] * self.frame.errors[source]).sum(-1)
        at = self.n_slots + self.n_layers * self.n_tokens
        for grad, value in zip(on_embeddings, sources.embeddings, strict=True):
            rows[:, at : at + self.n_tokens] = (grad * value).sum(-1)
            at += self.n_tokens
        return rows.cpu()


def _others(places: Tensor, n: int) -> Tensor:
    """`[n]` bool: everywhere but at `places`."""
    gone = torch.ones(n, dtype=torch.bool)
    gone[places] = False
    return gone


def sums(edges: Tensor) -> Tensor:
    """(Σ|edge|, Σ edge) of every row, `[rows, 2]` float64."""
    return torch.stack([edges.abs().sum(1, dtype=torch.float64), edges.sum(1, dtype=torch.float64)], 1)


class KnownRows:
    """The rows known so far, the target's first, in small blocks as they were computed, so that dropping columns copies
    little at a time: edges from the feature slots `slots` that may still become nodes, then errors and embeddings. Of
    slots dropped to save memory every row keeps its sums, so that normalising and adding up stay exact."""

    def __init__(self, row: Tensor, slots: Tensor, n_slots: int) -> None:
        gone = _others(slots, n_slots)
        self.slots, self.blocks = slots, [torch.cat([row[slots], row[n_slots:]])[None]]
        self.left_out, self.columns = [sums(row[:n_slots][gone][None])], []

    def add(self, rows: Tensor, left_out: Tensor) -> None:
        self.blocks.append(rows)
        self.left_out.append(left_out)

    def places(self, columns: list[int]) -> Tensor:
        """Where in a row the edges from the given feature slots stand."""
        return torch.searchsorted(self.slots, torch.tensor(columns, dtype=torch.long))

    def keep(self, places: Tensor) -> None:
        """Drop all feature slots but those at `places` (ascending)."""
        n, gone = len(self.slots), _others(places, len(self.slots))
        for i, block in enumerate(self.blocks):
            self.left_out[i] = self.left_out[i] + sums(block[:, :n][:, gone])
            self.blocks[i] = torch.cat([block[:, places], block[:, n:]], 1)
        self.slots = self.slots[places]

    def influence(self) -> Tensor:
        """Influence on the target of every feature slot that is left, through the rows known so far, `[slots]`."""
        sizes, places = [len(b) for b in self.blocks], self.places(self.columns)
        sizes_of = [sums(b)[:, 0] + o[:, 0] for b, o in zip(self.blocks, self.left_out, strict=True)]
        scale = torch.cat(sizes_of).clamp(min=1e-30).to(self.blocks[0].dtype)
        total, weights = self.blocks[0].new_zeros(self.blocks[0].shape[1]), torch.zeros(sum(sizes))
        for _ in range(65):
            following = torch.cat([torch.ones(1), total[places]])
            if torch.allclose(following, weights, rtol=1e-4, atol=1e-9):
                break
            weights = following
            parts = (weights / scale).split(sizes)
            total = sum((w @ b.abs() for w, b in zip(parts, self.blocks, strict=True)), torch.zeros_like(total))
        return total[: len(self.slots)]
