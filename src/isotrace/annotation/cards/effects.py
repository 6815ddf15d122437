"""What a feature does to the subject's output: ablate it where it fires most, and see which tokens gain and lose.

Free-running: the feature's write is taken away at every position of its strongest example, all that follows is
recomputed, and logits are compared at its strongest position, or, for a feature of the whole sequence, in the mean over
all positions. One example per feature, so this illustrates a feature; it does not measure its mean effect.
"""

from collections.abc import Callable, Iterable, Sequence

import polars as pl
import torch
from torch import Tensor

from isotrace.datasets.annotated import Data
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.dictionaries.replacement import asked_of
from isotrace.interventions import Intervention, Nodes, Plan, Rows, Set
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.subject import Batch, Subject

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
        if not same or (len(batches[-1]) + 1) * length > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    found = []
    for part in progress(batches):
        ids = torch.stack([torch.from_numpy(data.ids[place[row["index"]]]) for row in part]).to(subject.device)
        batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), (), ())
        at = None if data.whole else [max(zip(row["values"], row["positions"], strict=True))[1] for row in part]
        alone, example = ids.unique(dim=0, return_inverse=True)
        whole = Batch(alone, torch.ones_like(alone, dtype=torch.bool), (), ())
        clean = _relative(subject, whole, example, at, Plan())
        effect = clean - _relative(subject, batch, torch.arange(len(part)), at, _without(dictionary, part))
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


def _relative(subject: Subject, batch: Batch, example: Tensor, at: Sequence[int] | None, plan: Plan) -> Tensor:
    """Logits minus their mean, `[n, vocabulary]`, at position at[i] of row example[i], or averaged over positions."""
    with fast_kernels(subject), subject.edited(plan):
        final = subject.hidden(batch.ids, batch.mask)
    logits = subject.head(final[example]).mean(1) if at is None else subject.head(final[example, at])
    return logits - logits.mean(-1, keepdim=True)


def _without(dictionary: Dictionary, part: list[dict]) -> Plan:
    """Every row of a batch without the feature it is an example of."""
    layers = dictionary.config.layers
    nodes = [Nodes(((layers.index(row["layer"]), -1, row["feature"]),)) for row in part]
    return Plan((Intervention(Features(dictionary), Set(0.0), Rows(tuple(nodes))),))
