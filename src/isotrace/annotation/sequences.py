"""Classes and values of whole sequences against the pooled features of one source: p and q as for token concepts.

Classes are compared with a sequence's largest activation, values with its largest and with its mean one; q is
taken over the concepts of each of the two poolings by itself. Features of a pooled hookpoint have one activation of a
sequence, and nothing is pooled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from scipy import sparse

from isotrace.annotation.combine import rank
from isotrace.annotation.scores.sequence_level import SequencePairs, effects, null_maxima, pair_null, pool, select
from isotrace.annotation.scores.sequence_scores import SequenceScores, score
from isotrace.datasets.annotated import Data
from isotrace.domains.domain import Concept
from isotrace.stats.bootstrap import bootstrap_weights
from isotrace.stats.permutation import p_values, q_values, strata

if TYPE_CHECKING:
    from isotrace.annotation.annotate import AnnotationConfig

KINDS = {"max": ("class", "value"), "mean": ("value",)}
WHOLE = {"none": ("class", "value")}


@dataclass(frozen=True, eq=False)
class PooledResult:
    """One layer's features pooled in one way. `null_max` float64 `[permutations, concepts]`: the largest effects with
    shuffled numbers on the selection side; `p_heldout` float64 `[pairs]`."""

    pairs: SequencePairs
    scores: SequenceScores
    null_max: np.ndarray
    p_heldout: np.ndarray


def poolings(data: Data, reasons: list[str | None]) -> dict[str, list[int]]:
    """How activations are pooled → which concepts of sequences are then tested; `reasons[i]` is None where concept i
    can be."""
    concepts = data.table.sequence_concepts
    found = {
        how: [i for i, reason in enumerate(reasons) if reason is None and concepts[i].kind in kinds]
        for how, kinds in (WHOLE if data.whole else KINDS).items()
    }
    return {how: usable for how, usable in found.items() if usable}


def examine_sequences(
    activations: sparse.csr_matrix,
    data: Data,
    reasons: list[str | None],
    config: "AnnotationConfig",
    *,
    per_feature: int,
) -> dict[str, PooledResult]:
    """One layer, by pooling; `reasons` as in `poolings`.

    Kept are the best concept of every feature and the best features of every concept, as far as their effect on the
    selection side is above the 95 % quantile of the layer's largest effects with shuffled numbers.
    """
    table, found = data.table, {}
    sides = [np.flatnonzero(~data.held), np.flatnonzero(data.held)]
    ways = [strata(table.lengths[side]) for side in sides]
    several = {"n_permutations": config.n_permutations, "seed": config.seed}
    for how, usable in poolings(data, reasons).items():
        concepts = [table.sequence_concepts[i] for i in usable]
        numbers = [table.numbers[side][:, usable] for side in sides]
        pooled = activations if data.whole else pool(activations, table.sequence_ptr, how)
        chosen, scored = (pooled[side] for side in sides)
        null_max = null_maxima(chosen, numbers[0], concepts, ways[0], **several)
        effect = effects(chosen, numbers[0], concepts)
        bar = np.nan_to_num(np.quantile(null_max, 0.95, axis=0), nan=np.inf)
        pairs = select(
            np.where(np.abs(effect) > bar, effect, np.nan), per_feature=per_feature, per_concept=config.per_concept
        )
        observed, null = pair_null(scored, numbers[1], concepts, pairs, ways[1], **several)
        scores = score(
            scored, numbers[1], concepts, pairs, bootstrap_weights(len(sides[1]), config.n_bootstrap, (config.seed, 2))
        )
        found[how] = PooledResult(pairs, scores, null_max, np.nan_to_num(p_values(observed, null), nan=1.0))
    return found


def arrays_of(found: Mapping[str, PooledResult]) -> dict[str, np.ndarray]:
    """What `read` reads again."""
    arrays = {}
    for how, one in found.items():
        arrays |= {f"{how}.pairs.{k}": v for k, v in vars(one.pairs).items()}
        arrays |= {f"{how}.scores.{k}": v for k, v in vars(one.scores).items()}
        arrays |= {f"{how}.null_max": one.null_max, f"{how}.p_heldout": one.p_heldout}
    return arrays


def read(path: Path) -> dict[str, PooledResult]:
    with np.load(path) as stored:
        part = lambda prefix: {k.removeprefix(prefix): stored[k] for k in stored.files if k.startswith(prefix)}  # noqa: E731
        return {
            how: PooledResult(
                SequencePairs(**part(f"{how}.pairs.")), SequenceScores(**part(f"{how}.scores.")),
                stored[f"{how}.null_max"], stored[f"{how}.p_heldout"],
            )
            for how in (*KINDS, *WHOLE) if f"{how}.null_max" in stored.files
        }  # fmt: skip


def combine_sequences(
    source: str, found: Mapping[int, Mapping[str, PooledResult]], data: Data, reasons: list[str | None]
) -> pl.DataFrame:
    """Rows of associations.parquet for classes and values, of `found` by layer.

    `ci_low`, `ci_high` bound the AUROC, or the correlation, on the side that the pair was chosen for: of a feature that
    speaks against a class they bound 1 − AUROC.
    """
    frames = []
    for how, usable in poolings(data, reasons).items():
        concepts = [data.table.sequence_concepts[i] for i in usable]
        null_max = np.nan_to_num(np.max([layer[how].null_max for layer in found.values()], axis=0))
        rows = [_frame(source, how, layer, one[how], concepts, null_max) for layer, one in found.items()]
        frames.append(_significance(pl.concat(rows), len(concepts)))
    return pl.concat(frames) if frames else pl.DataFrame()


def _frame(
    source: str, how: str, layer: int, result: PooledResult, concepts: list[Concept], null_max: np.ndarray
) -> pl.DataFrame:
    pairs, found = result.pairs, result.scores
    against = pairs.effect < 0
    is_class = np.asarray([concepts[c].kind == "class" for c in pairs.concept], dtype=bool)
    turned = np.where(is_class, 1.0, 0.0)  # 1 − AUROC, −rho
    low, high = np.where(against, turned - found.high, found.low), np.where(against, turned - found.low, found.high)
    p_selection = [
        float(p_values(np.abs(pairs.effect[i : i + 1]), null_max[:, [c]])[0]) for i, c in enumerate(pairs.concept)
    ]
    columns = {
        "source": [source] * len(pairs),
        "layer": np.full(len(pairs), layer, dtype=np.int32),
        "feature": pairs.feature,
        "concept": [concepts[c].name for c in pairs.concept],
        "group": [concepts[c].group for c in pairs.concept],
        "kind": [concepts[c].kind for c in pairs.concept],
        "pooling": [how] * len(pairs),
        "effect_selection": pairs.effect,
        "auroc": np.where(is_class, found.value, np.nan),
        "auroc_ci_low": np.where(is_class, found.low, np.nan),
        "auroc_ci_high": np.where(is_class, found.high, np.nan),
        "odds_ratio": found.odds_ratio,
        "odds_ci_low": found.odds_low,
        "odds_ci_high": found.odds_high,
        "spearman": np.where(is_class, np.nan, found.value),
        "spearman_ci_low": np.where(is_class, np.nan, found.low),
        "spearman_ci_high": np.where(is_class, np.nan, found.high),
        "ci_low": low,
        "ci_high": high,
        "n_sequences": found.n_known.astype(np.int64),
        "p_selection": p_selection,
        "p_heldout": result.p_heldout,
    }
    schema = {"concept": pl.String, "group": pl.String, "kind": pl.String, "source": pl.String, "pooling": pl.String,
              "p_selection": pl.Float64}  # fmt: skip
    return pl.DataFrame(columns, schema_overrides=schema, nan_to_null=True)


def _significance(frame: pl.DataFrame, n_tested: int) -> pl.DataFrame:
    """p, q and ranks over all layers."""
    size = frame["effect_selection"].abs().to_numpy()
    concept = frame["concept"].rank("dense").cast(pl.Int64).to_numpy()
    feature = frame.select(pl.struct("layer", "feature").rank("dense").cast(pl.Int64)).to_series().to_numpy()
    p = frame.select(pl.max_horizontal("p_selection", "p_heldout")).to_series().to_numpy()
    concept_rank, feature_rank = rank(concept, size), rank(feature, size)
    q = q_values(p, concept_rank == 1, n_tested)
    return frame.with_columns(
        p=pl.Series(p), q=pl.Series(q), concept_rank=pl.Series(concept_rank.astype(np.int32)),
        feature_rank=pl.Series(feature_rank.astype(np.int32)),
    )  # fmt: skip
