"""Position-invariant inference: a subject reads segments without seeing their order (PINE, Wang et al. 2024).

Nothing that flows is edited and nothing is fitted, so it is no edit and no direction; it is given where a plan is,
`subject.run(batch, plan=PositionInvariant())`, and nests with plans by `subject.edited`. Two variants:

rotary positions   For every layer, head and query the segments are put in order of importance, the mean of
                   softmax(q·k/√d) without positions over their tokens, and stand as if written in that order, the most
                   important nearest: last before a query behind the block, first behind one before it. A query inside
                   a segment finds its own segment last, at the distances that it has.
learned positions  They are added once, before any head, so there is one order for all of them: by importance in the
                   first block, without positions, averaged over its heads and queries, the most important last. The
                   subject reads the text as if it were written so.

A causal subject with rotary positions also sees, from inside a segment, all of the others. Separators, one and the same
token, are alike in all that they see there: each stands in the last gap for itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isotrace.base.errors import InputError, SubjectError
from isotrace.steering.inference.segments import Segmenter, Segments, fragments
from isotrace.subjects.dispatch import AttentionFunction, Site, overlaid
from isotrace.subjects.subject import Batch, Subject

TIE = 1e-4
"""Importances that differ by a smaller share are ordered by the segments' tokens, not by rounding."""


@dataclass(frozen=True, eq=False)
class PositionInvariant:
    """`spans(text)`: character spans of its segments. `segments`: them, found in a batch; `places [B, T]`: where its
    tokens are taken to stand by a subject with learned positions."""

    spans: Segmenter = fragments
    segments: Segments | None = None
    places: Tensor | None = None

    def on(self, subject: Subject, batch: Batch) -> "PositionInvariant":
        """Raises SubjectError for a subject whose positions cannot be set so, InputError as `Segments.of`."""
        kind = variant(subject)
        subject.require_float32("position-invariant inference")
        segments = Segments.of(subject, batch, self.spans)
        places = None if kind == "rotary" else sorted_places(subject, batch, segments)
        return replace(self, segments=segments, places=places)

    @contextmanager
    def applied(self, subject: Subject) -> Iterator[None]:
        """Within the context, in this thread, `subject` runs on batches of these segments so."""
        if self.segments is None:
            raise InputError("segments are known of a batch only: use Subject.run, or PositionInvariant.on.")
        segments, causal, given = self.segments, subject.objective == "causal", subject.attentions
        if self.places is None:
            turn_of, base = TURNS[subject.family.model_type], subject.model.base_model
            placed = ((module, partial(_placed, segments, turn_of(base, module), causal)) for module in given)
            sites = [(module, Site(attention=(around,))) for module, around in placed]
        else:
            sites = [(table, Site(after=(partial(_moved, self.places),))) for table in _tables(subject)]
            seen = segments.real[:, None] & (self.places[:, None] <= self.places[..., None])
            sites += [(module, Site(attention=(partial(_seen, seen),))) for module in given if causal]
        with overlaid(sites):
            yield


@dataclass(frozen=True, eq=False)
class Turn:
    """Rotary positions: pairs of dimensions turned by place · `rates [pairs]`; dimension i goes with i + pairs
    (`halves`), or 2i with 2i + 1. Dimensions behind those do not turn."""

    rates: Tensor
    halves: bool = True

    def __call__(self, x: Tensor, places: Tensor) -> Tensor:
        """`x [..., d]` by `places [...]`."""
        angles = places[..., None].to(x.dtype) * self.rates.to(x)
        cos, sin, width = angles.cos(), angles.sin(), 2 * len(self.rates)
        part, rest = x[..., :width], x[..., width:]
        first, second = part.chunk(2, -1) if self.halves else (part[..., ::2], part[..., 1::2])
        turned = first * cos - second * sin, second * cos + first * sin
        joined = torch.cat(turned, -1) if self.halves else torch.stack(turned, -1).flatten(-2)
        return torch.cat([joined, rest], -1)


def _of_layer_type(base: Any, module: Any) -> Turn:
    return Turn(getattr(base.rotary_emb, f"{base.config.layer_types[module.layer_idx]}_inv_freq"))


def _of_width(base: Any, module: Any) -> Turn:
    steps = torch.arange(0, module.rotary_dim, 2).float() / module.rotary_dim
    return Turn(10_000**-steps, halves=False)


TURNS: dict[str, Callable[[Any, Any], Turn]] = {
    "esm": lambda base, module: Turn(base.rotary_embeddings.inv_freq),
    "esmc": lambda base, module: Turn(base.rotary_emb.inv_freq),
    "llama": lambda base, module: Turn(base.rotary_emb.inv_freq),
    "modernbert": _of_layer_type,
    "progen": _of_width,
}
LEARNED = ("albert", "bert", "esm", "gpt2", "roberta")
"""Families whose only positions are those of a table that is added to the embeddings."""


def variant(subject: Subject) -> Literal["rotary", "learned"]:
    """Raises SubjectError for a family whose positions are of another kind."""
    kind, config = subject.family.model_type, subject.model.config
    if kind == "esm" and config.position_embedding_type != "rotary":
        return "learned"
    if kind in TURNS or kind in LEARNED:
        return "rotary" if kind in TURNS else "learned"
    raise SubjectError(
        f"position-invariant inference cannot set the positions of {kind}, "
        f"{OTHERS.get(kind, 'which it does not know')}: "
        f"take a subject of {', '.join(sorted({*TURNS, *LEARNED}))}."
    )


OTHERS = {
    "bart": "whose decoder reads the same tokens in an order of its own",
    "deberta-v2": "which add terms of relative places to the scores of all rows at once",
    "materials.smi-ted": "which turn queries and keys inside the features of linear attention",
    "molformer": "which turn queries and keys inside the features of linear attention",
    "t5": "which are a bias that all layers share, and whose decoder reads the same tokens in an order of its own",
}


def _tables(subject: Subject) -> list[nn.Module]:
    return [embedding.module for embedding in subject.embeddings if embedding.kind == "position"]


class _Done(Exception):  # noqa: N818
    """The first attention has been seen."""


@torch.no_grad()
def sorted_places(subject: Subject, batch: Batch, segments: Segments) -> Tensor:
    """int64 `[B, T]`: the places of tokens when segments stand in the order of their importance to the first block."""
    found: list[Tensor] = []

    def attend(beneath: AttentionFunction, module: nn.Module, query: Tensor, key: Tensor, *given: Any) -> Any:
        scores = query @ key.transpose(2, 3) * given[-1] + hidden(segments.real[:, None, None], query)
        found.append((scores.softmax(-1) * segments.real[:, None, :, None]).mean((1, 2), keepdim=True))
        raise _Done

    sites = [(table, Site(after=(lambda _, args, output: torch.zeros_like(output),))) for table in _tables(subject)]
    with suppress(_Done), overlaid([*sites, (subject.attentions[0], Site(attention=(attend,)))]):
        subject.hidden(batch.ids, batch.mask)
    importance = importances(segments, found[0]).expand(-1, -1, segments.group.shape[1], -1)
    moved = shifts(segments, importance)[:, 0, -1]  # as what stands last in the text sees them
    here = torch.arange(segments.group.shape[1], device=moved.device)
    return here + moved.gather(1, segments.group)


def _moved(places: Tensor, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Position embeddings `[1 or B, T, d]`, looked up where tokens are taken to stand."""
    _same(places, output.shape[1])
    output = output.expand(len(places), -1, -1)
    return output.gather(1, places[..., None].expand_as(output))


def _seen(
    seen: Tensor, beneath: AttentionFunction, module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
    mask: Tensor | None, scaling: float,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Attention of each query to the keys that are `seen [B, T, T]`."""
    return beneath(module, query, key, value, hidden(seen[:, None], query), scaling)


def _placed(
    segments: Segments, turn: Turn, causal: bool, beneath: AttentionFunction, module: nn.Module, query: Tensor,
    key: Tensor, value: Tensor, mask: Tensor | None, scaling: float,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Attention with segments where each head and query finds them: what that adds to the scores is handed on as a
    mask, 0 where nothing moves."""
    _same(segments.group, query.shape[2], len(query))
    seen = segments.visible(causal)[:, None]
    here = torch.arange(query.shape[2], device=query.device)
    bare = [turn(x, -here.expand(x.shape[:-1])) for x in (query, key)]
    shares = (bare[0] @ bare[1].transpose(2, 3) * scaling + hidden(seen, query)).softmax(-1)
    importance = importances(segments, shares)
    numbers = torch.arange(1, 1 + importance.shape[-1], device=query.device)
    mine = segments.group[:, None, :, None] == numbers  # the nearest to its own tokens, whatever its importance
    moved = shifts(segments, importance.masked_fill(mine, torch.inf))  # [B, heads, T, groups]
    own = segments.group[:, None, :, None].expand(*moved.shape[:3], 1)
    moved = moved - moved.gather(-1, own)
    scores = query @ key.transpose(2, 3) * scaling
    added = torch.zeros_like(scores)
    for group in range(moved.shape[-1]):
        if bool(moved[..., group].any()):  # keys further by so much are seen by queries turned back by as much
            new = turn(query, -moved[..., group]) @ key.transpose(2, 3) * scaling
            added = torch.where((segments.group == group)[:, None, None], new - scores, added)
    if (window := getattr(module, "sliding_window", None)) is not None:
        keys = segments.group[:, None, None].expand(*moved.shape[:3], -1)
        seen = seen & ((here - here[:, None] + moved.gather(-1, keys)).abs() < window)
    return beneath(module, query, key, value, added + hidden(seen, query), scaling)


def hidden(seen: Tensor, like: Tensor) -> Tensor:
    """0 where a query sees a key, the lowest number elsewhere."""
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(~seen, torch.finfo(like.dtype).min)


def importances(segments: Segments, shares: Tensor) -> Tensor:
    """`[B, heads, queries, S]`: what a token of each segment has of `shares [B, heads, queries, T]` on the average;
    −infinite for a segment that the row lacks."""
    numbers = torch.arange(1, 1 + segments.starts.shape[1], device=shares.device)
    inside = (segments.group[:, :, None] == numbers).to(shares)  # [B, T, S]
    found = shares @ inside[:, None] / segments.lengths.clamp(min=1)[:, None, None]
    found = found * (1 + TIE * segments.ranks[:, None, None])
    return found.masked_fill((segments.lengths == 0)[:, None, None], -torch.inf)


def shifts(segments: Segments, importance: Tensor) -> Tensor:
    """int64 `[B, heads, T, groups]`: how far from where they are written a query finds each of `Segments.group`."""
    wide = (*importance.shape[:3], -1)
    order = importance.sort(dim=-1, descending=True, stable=True).indices
    gap = segments.gap[:, None, None, None]
    sizes = segments.lengths[:, None, None].expand(wide).gather(-1, order) + gap
    beyond = sizes.cumsum(-1)  # from the near end of the block to behind each, and the separator that follows
    first, end = (x[:, None, None, None] for x in (segments.first, segments.end))
    before = segments.before[:, None, :, None]
    starts = torch.where(before, first + beyond - sizes, end - beyond + gap)
    found = torch.zeros_like(starts).scatter(-1, order, starts) - segments.starts[:, None, None]
    gaps = torch.where(before, first + beyond - 1, end - beyond)[..., :-1]
    n = segments.starts.shape[1]
    numbers = torch.arange(n - 1, device=order.device)
    asking = (segments.group - 1 - n).clamp(min=0)[:, None, :, None]  # a separator stands in the last gap for itself
    which = (numbers - asking) % (segments.counts - 1).clamp(min=1)[:, None, None, None]
    parts = gaps.gather(-1, which.expand_as(gaps)) - segments.separators[:, None, None]
    return torch.cat([torch.zeros_like(found[..., :1]), found, parts], -1)


def _same(rows: Tensor, n_tokens: int, n_rows: int | None = None) -> None:
    if rows.shape != (len(rows) if n_rows is None else n_rows, n_tokens):
        raise InputError(f"segments of {[*rows.shape]} tokens meet others: resolve them on the batch that is run.")
