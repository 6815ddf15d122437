"""One site: pairs chosen on the selection side, scored on the held-out side, with what their significance needs.

1. thresholds   quantiles of each feature's positive activations on selection tokens
2. choice       token F1 of every feature × threshold × concept there; the best pairs are kept
3. score        all F1s of the kept pairs on held-out tokens, bootstrap of whole sequences
4. null         the largest F1 per shuffled concept on selection tokens; each kept pair's own on held-out tokens

Permutations look at a random part of the sequences where all would take too long; observed and shuffled F1 are then
both of that part, so that p stays exact.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from isotrace.annotation.nulls.permutation import null_maxima
from isotrace.annotation.nulls.significance import pair_null
from isotrace.annotation.scores.counting import count, fire, thresholds, token_f1
from isotrace.annotation.scores.token_scores import Pairs, Scores, choose, score
from isotrace.datasets.concept_table import ConceptTable
from isotrace.stats.permutation import p_values

ARRAYS = ("f1_selection", "f1_test", "p_heldout", "null95", "null_max")
COUNTED = 64  # concepts counted at a time: their counts are [concepts, features, levels]


@dataclass(frozen=True, eq=False)
class Part:
    """Some sequences: their token rows (ascending), their concepts, and which of their tokens are special."""

    rows: np.ndarray
    table: ConceptTable
    special: np.ndarray


@dataclass(frozen=True, eq=False)
class Sides:
    """The two sides, and the parts of them that permutations look at."""

    selection: Part
    held: Part
    selection_test: Part
    held_test: Part

    @classmethod
    def of(cls, table: ConceptTable, held: np.ndarray, special: np.ndarray, share: float, seed: int) -> "Sides":
        """`share` of each side's sequences, at least 50 of them, goes into the tests; `special` bool `[tokens]`."""
        rng, parts = np.random.default_rng((seed, 4)), []
        for side in (~held, held):
            sequences = np.flatnonzero(side)
            size = min(len(sequences), max(50, round(share * len(sequences))))
            for chosen in (sequences, np.sort(rng.choice(sequences, size, replace=False))):
                rows = table.token_rows(chosen)
                parts.append(Part(rows, table.take(chosen), special[rows]))
        return cls(parts[0], parts[2], parts[1], parts[3])


@dataclass(frozen=True, eq=False)
class SiteResult:
    """`f1_selection`, `f1_test` (of the part permutations look at), `p_heldout`, `null95` (95 % quantile of the pair's
    own null) float `[pairs]`; `null_max` float32 `[permutations, concepts]`; `n_alive` of `n_features` ever fire."""

    pairs: Pairs
    scores: Scores
    f1_selection: np.ndarray
    f1_test: np.ndarray
    p_heldout: np.ndarray
    null95: np.ndarray
    null_max: np.ndarray
    n_features: int
    n_alive: int

    def arrays(self) -> dict[str, np.ndarray]:
        """What `load` reads again."""
        arrays = {f"pairs.{k}": v for k, v in vars(self.pairs).items()}
        arrays |= {f"values.{k}": v for k, v in self.scores.values.items()}
        arrays |= {f"scores.{k}": v for k, v in vars(self.scores).items() if k != "values"}
        return arrays | {k: np.asarray(v) for k, v in vars(self).items() if k not in ("pairs", "scores")}

    @classmethod
    def load(cls, path: Path) -> "SiteResult":
        with np.load(path) as stored:
            part = lambda prefix: {k.removeprefix(prefix): stored[k] for k in stored.files if k.startswith(prefix)}  # noqa: E731
            rest = {k: stored[k] for k in stored.files if "." not in k}
            scores = Scores(**part("scores."), values=part("values."))
            counts = [int(rest.pop(name)) for name in ("n_features", "n_alive")]
            return cls(Pairs(**part("pairs.")), scores, *(rest[name] for name in ARRAYS), *counts)


def examine(
    activations: sparse.csr_matrix,
    sides: Sides,
    weights: np.ndarray,
    *,
    quantiles: tuple[float, ...],
    per_feature: int,
    per_concept: int,
    n_permutations: int,
    seed: int,
    null_max: np.ndarray | None = None,
) -> SiteResult:
    """`activations` CSR `[tokens, features]` of all sequences; `weights [draws, sequences]` of the held-out ones;
    `null_max`: of all permutations, where `null_draws` gave it already."""
    table = sides.selection.table
    selected = activations[sides.selection.rows]
    levels = thresholds(selected, quantiles)
    firing = fire(selected, levels)
    n = len(table.token_concepts)
    f1 = np.concatenate(
        [np.zeros((0, *levels.shape), dtype=np.float32)]
        + [token_f1(count(firing, table, slice(at, min(at + COUNTED, n)))) for at in range(0, n, COUNTED)]
    )
    pairs = choose(f1, levels, per_feature=per_feature, per_concept=per_concept)
    chosen = f1[pairs.concept, pairs.feature, pairs.level]
    del f1, firing, selected
    scores = score(sparse.csc_matrix(activations[sides.held.rows]), sides.held.table, pairs, weights)

    part = sides.selection_test
    tested = activations[part.rows]
    if null_max is None:
        null_max = _null_draws(tested, levels, part, n_permutations, 0, seed)
    alone = sparse.csc_matrix(tested), part.table, part.special, pairs
    observed, _ = pair_null(*alone, n_permutations=0, seed=seed)
    part = sides.held_test
    alone = sparse.csc_matrix(activations[part.rows]), part.table, part.special, pairs
    again, null = pair_null(*alone, n_permutations=n_permutations, seed=seed + 1)
    return SiteResult(
        pairs=pairs,
        scores=scores,
        f1_selection=chosen,
        f1_test=observed,
        p_heldout=p_values(again, null),
        null95=np.quantile(null, 0.95, axis=0).astype(np.float64) if len(null) else np.full(len(pairs), np.nan),
        null_max=null_max,
        n_features=activations.get_shape()[1],
        n_alive=int((np.diff(sparse.csc_matrix(activations).indptr) > 0).sum()),
    )


def null_draws(
    activations: sparse.csr_matrix, sides: Sides, quantiles: tuple[float, ...], *, n_permutations: int, start: int,
    seed: int,
) -> np.ndarray:  # fmt: skip
    """float32 `[permutations, concepts]`: permutations start, start + 1, … of `SiteResult.null_max`."""
    levels = thresholds(activations[sides.selection.rows], quantiles)
    part = sides.selection_test
    return _null_draws(activations[part.rows], levels, part, n_permutations, start, seed)


def _null_draws(tested: sparse.csr_matrix, levels: np.ndarray, part: Part, n: int, start: int, seed: int) -> np.ndarray:
    firing = fire(tested, levels)
    return null_maxima(firing, part.table, fixed=part.special, n_permutations=n, start=start, seed=seed)
