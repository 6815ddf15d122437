"""What a feature does to the subject's output: ablate it where it fires most, and see which tokens gain and lose.

Free-running: the feature's write is taken away at every position of its strongest example, all that follows is
recomputed, and logits are compared at its strongest position, or, for a feature of the whole sequence, in the mean over
all positions. One example per feature, so this illustrates a feature; it does not measure its mean effect. Features of
one layer run together, from the first block that they change.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import polars as pl
import torch
from torch import Tensor

from isotrace.datasets.annotated import Data
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.dictionaries.replacement import asked_of
from isotrace.subjects.dispatch import hookpoints_edited
from isotrace.subjects.fast import blocks_given, blocks_recorded, fast_kernels
from isotrace.subjects.subject import Subject

SHOWN = 5
SCHEMA = {"layer": pl.Int32, "feature": pl.Int64, "promoted": pl.List(pl.String), "promoted_by": pl.List(pl.Float32),
          "suppressed": pl.List(pl.String), "suppressed_by": pl.List(pl.Float32)}  # fmt: skip


@torch.no_grad()
def logit_effects(
    subject: Subject,
    dictionary: Dictionary,
    data: Data,
    examples: pl.DataFrame,
    *,
    batch_tokens: int = 2_048,
    progress: Callable[[Iterable], Iterable] = iter,
) -> pl.DataFrame:
    """`promoted`: tokens whose logit, relative to the mean logit, the feature raises most, `promoted_by` how much."""
    subject = asked_of(subject, [dictionary.config])
    place = {index: i for i, index in enumerate(data.index)}
    top = examples.filter(pl.col("group") == "top").group_by("layer", "feature", maintain_order=True).first()
    # Features with the same example stand together, so that its clean pass is made once.
    rows = sorted(top.to_dicts(), key=lambda row: (len(data.ids[place[row["index"]]]), row["index"]))
    batches: list[list[dict]] = []
    for row in rows:
        length = len(data.ids[place[row["index"]]])
        same = batches and len(data.ids[place[batches[-1][0]["index"]]]) == length
        # whole multiples of what runs at a time: how many rows a product has may show in its last bits
        if not same or len(batches[-1]) == max(1, batch_tokens // length) * dictionary.config.n_layers:
            batches.append([])
        batches[-1].append(row)
    found = []
    for part in progress(batches):
        ids = torch.stack([torch.from_numpy(data.ids[place[row["index"]]]) for row in part]).to(subject.device)
        at = None if data.whole else [max(zip(row["values"], row["positions"], strict=True))[1] for row in part]
        size = max(1, batch_tokens // ids.shape[1])
        finals, example = _finals(subject, dictionary, part, ids, size)
        places = [slice(start, start + size) for start in range(0, len(part), size)]
        effect = torch.cat([_relative(subject, *finals, example, at, some) for some in places])
        for row, values in zip(part, effect, strict=True):
            high, low = values.topk(SHOWN), (-values).topk(SHOWN)
            found.append(
                {
                    "layer": row["layer"],
                    "feature": row["feature"],
                    "promoted": subject.tokens(high.indices),
                    "promoted_by": high.values.tolist(),
                    "suppressed": subject.tokens(low.indices),
                    "suppressed_by": (-low.values).tolist(),
                }
            )
    return pl.DataFrame(found, schema=SCHEMA)


def _finals(
    subject: Subject, dictionary: Dictionary, part: list[dict], ids: Tensor, size: int
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """((clean final hidden states of every different sequence, those `[n, tokens, d_model]` of each row of `ids`
    without the feature it is an example of), which sequence a row is), `size` rows at a time."""
    alone, example = ids.unique(dim=0, return_inverse=True)
    features, layers, seen = Features(dictionary), dictionary.config.layers, {}
    keep = {site: partial(_kept, seen, layer) for layer, site in enumerate(features.reads(subject))}
    with fast_kernels(subject), blocks_recorded(subject) as blocks, hookpoints_edited(subject, keep):
        clean = subject.hidden(alone, torch.ones_like(alone, dtype=torch.bool))
    found = clean.new_empty(len(ids), *clean.shape[1:])
    for layer, number in enumerate(layers):
        rows = torch.tensor([i for i, row in enumerate(part) if row["layer"] == number], device=ids.device)
        if not len(rows):
            continue
        begin, units = features.block(subject, layer), torch.tensor([row["feature"] for row in part]).to(rows)
        active = _active(features, layer, seen[layer], example[rows], units[rows], size)
        for some, activations in zip(rows.split(size), active.split(size), strict=True):
            given = [_taken(blocks[begin - 1], example[some], len(alone))] * begin
            written = -activations[..., None] * features.rows(subject, layer, units[some])[:, None]
            with (
                fast_kernels(subject),
                blocks_given(subject, given, len(some)),
                features.added(subject, layer, written),
            ):
                found[some] = subject.hidden(ids[some], torch.ones_like(ids[some], dtype=torch.bool))
    return (clean, found), example


def _kept(into: dict[int, Tensor], layer: int, x: Tensor) -> Tensor:
    into[layer] = x
    return x


def _active(features: Features, layer: int, x: Tensor, example: Tensor, units: Tensor, size: int) -> Tensor:
    """Activation `[n, tokens]` of feature units[i] where x[example[i]] is read, `size` sequences at a time."""
    found = x.new_zeros(len(units), x.shape[1])
    for start in range(0, len(x), size):
        values = features.encode(layer, features.source(layer, x[start : start + size]))
        here = ((example >= start) & (example < start + size)).nonzero()[:, 0]
        found[here] = values[example[here] - start, :, units[here]]
    return found


def _taken(given: Any, rows: Tensor, n: int) -> Any:
    """What a block gave, of some rows of the `n` that it was run on."""
    if isinstance(given, tuple):
        return tuple(_taken(one, rows, n) for one in given)
    return given[rows] if isinstance(given, Tensor) and len(given) == n else given


def _relative(
    subject: Subject, clean: Tensor, ablated: Tensor, example: Tensor, at: Sequence[int] | None, some: slice
) -> Tensor:
    """By how much logits less their mean, `[n, vocabulary]`, are higher in the clean pass than in the other, at
    position at[i] of row i, or averaged over positions; of the rows in `some`."""
    found = []
    for final in (clean[example[some]], ablated[some]):
        logits = subject.head(final).mean(1) if at is None else subject.head(final[torch.arange(len(final)), at[some]])
        found.append(logits - logits.mean(-1, keepdim=True))
    return found[0] - found[1]
