"""Connections that hold for all inputs: the weights between what is written and what is read, with norms and attention
frozen (Dunefsky et al. 2024, "Transcoders find interpretable LLM feature circuits", §4).

    c(x) · r P w     what w, written at one place, gives to the read vector r at a later one, at the same token

P is a product of weights alone: the scales γ and the centring of the norms on the way. c = Π 1/σ over them is all
that depends on the input: one σ where norms stand before what reads (pre-norm), one for every sublayer crossed where
they stand in the stream (post-norm). P is the Jacobian of the subject's own modules with every σ at one, every token by
itself, and what heads and MLPs write given from outside, so that no family is written a second time here. Which σ
belong to a segment is read off the same run: ∂ log(r P w) / ∂ log σ is −1 where a norm is crossed and 0 elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from isotrace.base.errors import InputError, SubjectError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.subjects.dispatch import forwards_replaced, hookpoints_edited, mlps_computed_by, patterns_set
from isotrace.subjects.frozen import scaled
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Subject

ROWS = 256
"""Read vectors that are pulled back at a time."""


@dataclass(frozen=True)
class Place:
    """Where something is written or read. `kind`: `embedding` (one of `Subject.embeddings`), `heads` (of a layer, side
    by side: what they give, or, where it is read, their values), `mlp` (what it gives), `features` (what a layer of the
    dictionary writes or reads), `final` (the final hidden state)."""

    kind: Literal["embedding", "heads", "mlp", "features", "final"]
    index: int = 0


FINAL = Place("final")


class Segments:
    """Of a subject with a dictionary of it. `norms` orders the σ of a token. Raises InputError and SubjectError as
    `refuse` does."""

    def __init__(self, subject: Subject, dictionary: Dictionary) -> None:
        refuse(subject, dictionary)
        self.subject, self.dictionary = subject, dictionary
        self.norms = [*subject.norms.values()]
        config, layers = dictionary.config, range(subject.n_layers)
        embeddings = [next(e.module.parameters()).shape[-1] for e in subject.embeddings]
        self.widths = {Place("embedding", i): d for i, d in enumerate(embeddings)}
        self.widths |= {Place("heads", m): subject.n_heads(m) * subject.d_head(m) for m in layers}
        self.widths |= {Place("mlp", m): subject.d_model for m in layers}
        self.widths |= {Place("features", slot): config.d_out for slot in range(config.n_layers)}
        like = subject._weight
        self.leaves = {at: like.new_zeros(ROWS, 1, d).requires_grad_() for at, d in self.widths.items()}
        self.outputs = self._run(self.leaves, [like.new_ones(1, 1, 1)] * len(self.norms))
        self._crossed = self._crossings()
        self._values: dict[tuple[int, Place], Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self.subject.device

    def _run(self, written: dict[Place, Tensor], sigma: Sequence[Tensor]) -> dict[Place, Tensor]:
        """What is read at every place `[rows, 1, d]`, from what is written `[rows, 1, d]` at every other."""
        subject, config, found = self.subject, self.dictionary.config, {}
        rows, like, kind = len(written[Place("heads")]), self.subject._weight, self.subject.family.norm
        replaced = {n: partial(_normed, norm=n, sigma=s, kind=kind) for n, s in zip(self.norms, sigma, strict=True)}
        for i, embedding in enumerate(subject.embeddings):
            replaced[embedding.module] = partial(_given, written[Place("embedding", i)])
        edits: dict[str, list[Callable[[Tensor], Tensor]]] = {
            f"layers.{m}.head_out": [_Swap(found, Place("heads", m), written)] for m in range(subject.n_layers)
        }
        for slot, (read, write) in enumerate(zip(config.reads, config.writes, strict=True)):
            edits.setdefault(read, []).append(_Seen(found, Place("features", slot)))
            edits.setdefault(write, []).append(_Plus(written[Place("features", slot)]))
        # one that is neither masked nor padding, which some families treat by themselves
        ids = torch.full((rows, 1), int((~subject.is_special).nonzero()[0, 0]), device=like.device)
        one = like.new_ones(1, 1, 1, 1)
        with (
            torch.enable_grad(),
            forwards_replaced(replaced),
            patterns_set(subject, lambda module, own, n: one),
            mlps_computed_by(subject, lambda layer, x: written[Place("mlp", layer)]),
            hookpoints_edited(subject, {name: partial(_in_turn, parts) for name, parts in edits.items()}),
        ):
            found[FINAL] = subject.hidden(ids, torch.ones_like(ids, dtype=torch.bool), (subject.n_layers,))
        return found

    def _crossings(self) -> dict[tuple[Place, Place], tuple[int, ...]]:
        """(writer, reader) → the norms between them, for every pair that a segment joins. In row w of one pass there is
        something at writer w alone."""
        writers, generator, like = [*self.widths], torch.Generator().manual_seed(0), self.subject._weight
        written = {at: like.new_zeros(len(writers), 1, d).requires_grad_() for at, d in self.widths.items()}
        drawn = [torch.randn(d, generator=generator).to(like) for d in self.widths.values()]
        sigma = [like.new_ones(len(writers), 1, 1).requires_grad_() for _ in self.norms]
        crossed = {}
        for reader, output in self._run(written, sigma).items():
            read = output[:, 0] @ torch.randn(output.shape[-1], generator=generator).to(like)
            with torch.enable_grad():  # without what biases give: the part that is linear in what row w has at writer w
                pulled = torch.autograd.grad(read.sum(), [*written.values()], create_graph=True, allow_unused=True)
                linear = {row: g[row, 0] @ drawn[row] for row, g in enumerate(pulled) if g is not None}
                total = torch.stack([*linear.values()]).sum()
                # nothing is crossed on the way from the embeddings to the first layer of a post-norm subject
                crossing = torch.autograd.grad(total, sigma, allow_unused=True) if total.requires_grad else ()
            for row, value in ((row, float(v.detach())) for row, v in linear.items() if bool(v != 0)):
                powers = [0.0 if slope is None else -float(slope[row]) / value for slope in crossing]
                crossed[writers[row], reader] = tuple(i for i, power in enumerate(powers) if power > 0.5)
        return crossed

    def joined(self, writer: Place, reader: Place) -> bool:
        """Whether what is written at one place reaches the other without passing a head or an MLP."""
        return (writer, reader) in self._crossed

    def crossed(self, writer: Place, reader: Place) -> tuple[int, ...]:
        """Places in `norms` of those between the two, which are `joined`."""
        return self._crossed[writer, reader]

    def gain(self, writer: Place, reader: Place, sigma: Tensor) -> Tensor:
        """c of tokens whose σ are `sigma [norms, ...]`: `[...]`."""
        return sigma[[*self.crossed(writer, reader)]].prod(0).reciprocal()

    def pulled(self, reader: Place, rows: Tensor, writers: Sequence[Place]) -> dict[Place, Tensor]:
        """r P `[n, d]` at each of `writers`, which are `joined`, of the read vectors `rows [n, d]` at `reader`."""
        parts: dict[Place, list[Tensor]] = {at: [rows.new_zeros(0, self.widths[at])] for at in writers}
        wanted = [self.leaves[at] for at in writers]
        for part in rows.split(ROWS) if writers else ():
            given = torch.zeros_like(self.outputs[reader])
            given[: len(part), 0] = part
            for at, pulled in zip(writers, torch.autograd.grad(self.outputs[reader], wanted, given, True), strict=True):
                parts[at].append(pulled[: len(part), 0])
        return {at: torch.cat(found) for at, found in parts.items()}

    def values(self, layer: int, writer: Place) -> Tensor:
        """P `[heads · d_head, d]` from what is written at a place to the values of a layer's heads."""
        if (layer, writer) not in self._values:
            at = Place("heads", layer)
            sources = [w for w in self.widths if self.joined(w, at)]
            eye = torch.eye(self.widths[at], device=self.device, dtype=self.subject._weight.dtype)
            self._values |= {(layer, w): found for w, found in self.pulled(at, eye, sources).items()}
        return self._values[layer, writer]

    def reads(self, slot: int, features: Tensor | slice = slice(None)) -> Tensor:
        """Encoder columns `[n, d_in]`, less their mean where every token is standardised before it is encoded."""
        rows = self.dictionary.W_enc[slot].T[features]
        return rows if self.dictionary.config.token_normalization == "none" else rows - rows.mean(-1, keepdim=True)

    def heads(self, layer: int, head: int) -> slice:
        """Where a head stands among those of its layer, side by side."""
        d = self.subject.d_head(layer)
        return slice(head * d, (head + 1) * d)


def refuse(subject: Subject, dictionary: Dictionary) -> None:
    """Raises SubjectError for a subject in fewer digits than float32 and for an encoder–decoder, whose streams meet in
    attention alone; InputError for a dictionary whose features nothing reaches, or that reach nothing, linearly."""
    subject.require_float32("a connection between features")
    if len(subject.stack_sizes) > 1:
        raise SubjectError(f"{subject.source} has an encoder and a decoder: connections are those of one stream.")
    config = dictionary.config
    read, write = (site.rpartition(".")[2] for site in (config.hookpoint_in, config.hookpoint_out))
    if is_pooled(config.reads) or is_pooled(config.writes):
        raise InputError("features of whole sequences have no connections: give a dictionary of tokens.")
    if read in ("mlp_out", "neuron") or write in ("mlp_in", "neuron"):
        raise InputError(
            f"features that read {read} and write {write} have no connections: between them stands the MLP's function. "
            "Give a transcoder, or an autoencoder of the stream (resid_pre, resid_post) or of attn_out."
        )


def _normed(x: Tensor, norm, sigma: Tensor, kind) -> Tensor:
    return scaled(x, norm, sigma, kind)


def _given(value: Tensor, *_: object, **__: object) -> Tensor:
    return value


def _in_turn(parts: list[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for part in parts:
        x = part(x)
    return x


@dataclass(frozen=True, eq=False)
class _Seen:
    into: dict[Place, Tensor]
    at: Place

    def __call__(self, x: Tensor) -> Tensor:
        self.into[self.at] = x
        return x


@dataclass(frozen=True, eq=False)
class _Swap(_Seen):
    written: dict[Place, Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        super().__call__(x)
        return self.written[self.at]


@dataclass(frozen=True, eq=False)
class _Plus:
    leaf: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.leaf
