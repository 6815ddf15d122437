"""Which concept each feature fires on, chosen on some molecules and scored on others.

1. thresholds   quantiles of each feature's positive activations on the selection molecules
2. choice       F1 of every feature × threshold × concept there; the best pair is kept
3. null         concept rows shuffled among the tokens of each molecule, and step 2 repeated
4. score        F1, precision and recall of the kept pair on the held-out molecules
5. interval     bootstrap of whole held-out molecules
6. test         Mantel-Haenszel test on the held-out molecules, Benjamini-Hochberg over features

Counts over all pairs are one sparse product: activations binned by threshold, times concepts. The test has the
null of step 3 (labels exchangeable within a molecule) in closed form, so its p has no floor set by the number of
permutations; the pair was chosen on other molecules, so p needs no correction for concepts and thresholds tried.
A concept that all tokens of a molecule share cannot be told from the molecule by this null, and gets no label.
Exchangeability leaves out that neighbouring tokens are alike: where both feature and concept come in runs, p is too
small (measured on unrelated runs of 8 tokens: 12 % below 0.05), which is why a label asks for f1 and its interval too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import sparse, stats

from isotrace.errors import InputError

QUANTILES = (0.0, 0.5, 0.75, 0.9)
UNEXPLAINED = "unexplained"


def associate(
    activations: sparse.csr_matrix,
    concepts: sparse.csr_matrix,
    molecule: np.ndarray,
    selection: np.ndarray,
    *,
    names: Sequence[str],
    seed: int,
    n_bootstrap: int = 200,
    n_permutations: int = 50,
    min_positive: int = 20,
    quantiles: Sequence[float] = QUANTILES,
) -> pl.DataFrame:
    """One row per feature: its best concept, and how well that holds on molecules it was not chosen on.

    `activations` is CSR float32 `[tokens, features]`, never negative; `concepts` CSR bool `[tokens, concepts]` with
    one of `names` per column; `molecule` int `[tokens]` numbers the molecule of each token; `selection` bool
    `[molecules]` is true where the molecule serves to choose, false where it is held out. A feature fires where its
    activation is positive and at least its threshold, one of the ascending `quantiles`. A concept with fewer than
    `min_positive` tokens, or none without it, on either side is left out.

    Columns: `feature`, `concept` and `concept_index`, `threshold` (units of the activations), `f1_selection`; on
    held-out tokens `f1`, `f1_ci_low`, `f1_ci_high` (95 % percentile bootstrap over molecules), `precision` (null
    if the feature never fires there), `recall`, `n_positive` (tokens with the concept); `null_f1`, the 95 %
    quantile over permutations of the feature's largest selection F1 over concepts and thresholds; `p` (one-sided)
    and `q` (over the features tested); `label`, the concept if f1 >= 0.5, q < 0.05 and f1_ci_low > null_f1, else
    "unexplained"; `reason`, null, or why a feature was not tested, its other columns then being null.

    Raises InputError if shapes disagree, an activation is negative or not finite, or a side has no molecule.
    Sources: Mantel and Haenszel 1959; Benjamini and Hochberg 1995.
    """
    activations = sparse.csr_matrix(activations, copy=True)
    concepts = sparse.csr_matrix(concepts, dtype=bool, copy=True)
    molecule, selection = np.asarray(molecule), np.asarray(selection, dtype=bool)
    _check(activations, concepts, molecule, selection, names)
    activations.eliminate_zeros()
    concepts.eliminate_zeros()
    rng = np.random.default_rng(seed)

    order = np.argsort(molecule, kind="stable")
    chosen, held = (order[selection[molecule[order]] == side] for side in (True, False))
    informative = [_informative(concepts[side].getnnz(axis=0), len(side), min_positive) for side in (chosen, held)]
    usable = np.flatnonzero(informative[0] & informative[1])
    live = activations[chosen].getnnz(axis=0) >= min_positive
    tested = np.flatnonzero(live & (len(usable) > 0))
    reason = np.where(live, "no concept is frequent enough on both sides", "active on too few selection tokens")
    rows = pl.DataFrame({"feature": np.arange(len(live)), "reason": reason.astype(str).tolist()})
    rows = rows.with_columns(reason=pl.when(~pl.col("feature").is_in(tested.tolist())).then("reason"))

    label_tokens = concepts[:, usable].toarray()
    thresholds, firing = _bin(activations[chosen][:, tested].tocsc(), len(chosen), quantiles)
    f1 = _selection_f1(firing, label_tokens[chosen], thresholds.shape)
    best = f1.reshape(len(tested), -1).argmax(axis=1) if len(tested) else tested
    level, column = np.divmod(best, max(len(usable), 1))
    threshold = thresholds[np.arange(len(tested)), level]
    null = _null_f1(firing, label_tokens[chosen], molecule[chosen], thresholds.shape, n_permutations, rng)
    counts = _count(activations[held][:, tested], threshold, label_tokens[held], column, molecule[held])
    low, high = _bootstrap(counts, n_bootstrap, rng)
    hits, fired, positive = counts.total()
    p = _mantel_haenszel(counts)
    found = pl.DataFrame(
        {
            "feature": tested,
            "concept": pl.Series([str(names[i]) for i in usable[column]], dtype=pl.String),
            "concept_index": usable[column],
            "threshold": threshold,
            "f1_selection": f1[np.arange(len(tested)), level, column],
            "f1": 2 * hits / (fired + positive),
            "f1_ci_low": low,
            "f1_ci_high": high,
            "precision": np.divide(hits, fired, out=np.full(len(tested), np.nan), where=fired > 0),
            "recall": hits / positive,
            "n_positive": positive.astype(np.int64),
            "null_f1": null,
            "p": p,
            "q": stats.false_discovery_control(p) if len(p) else p,
        },
        nan_to_null=True,
    )
    holds = (pl.col("f1") >= 0.5) & (pl.col("q") < 0.05) & (pl.col("f1_ci_low") > pl.col("null_f1"))
    result = rows.join(found, on="feature", how="left", maintain_order="left")
    result = result.with_columns(label=pl.when(holds).then("concept").otherwise(pl.lit(UNEXPLAINED)))
    return result.select(*found.columns, "label", "reason")


@dataclass(frozen=True)
class _Counts:
    """Held-out tokens per molecule: fired and hit sparse `[molecules, features]`, the rest of their concepts."""

    fired: sparse.csr_matrix
    hits: sparse.csr_matrix
    positive: np.ndarray  # [molecules, concepts]
    size: np.ndarray  # [molecules]
    column: np.ndarray  # [features], the concept of each feature

    def total(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hits, fired and positive tokens, each `[features]`."""
        hits, fired = (np.asarray(m.sum(axis=0)).ravel() for m in (self.hits, self.fired))
        return hits, fired, self.positive.sum(axis=0)[self.column]


def _check(activations, concepts, molecule, selection, names) -> None:
    tokens = activations.shape[0]
    if concepts.shape[0] != tokens or molecule.shape != (tokens,) or concepts.shape[1] != len(names):
        raise InputError(
            f"activations {activations.shape}, concepts {concepts.shape}, molecule {molecule.shape} and "
            f"{len(names)} names disagree: give one row per token and one name per concept."
        )
    if not np.isfinite(activations.data).all() or (activations.data < 0).any():
        raise InputError("an activation is negative or not finite: give the dictionary's activations after its rule.")
    if tokens == 0 or molecule.min() < 0 or molecule.max() >= len(selection):
        raise InputError(f"molecule numbers must lie in 0 … {len(selection) - 1}, one entry of selection each.")
    if len(np.unique(selection[molecule])) != 2:
        raise InputError("selection must keep some molecules with tokens on either side: choose another split.")


def _informative(count: np.ndarray, n_tokens: int, min_positive: int) -> np.ndarray:
    return (count >= min_positive) & (count < n_tokens)


def _bin(activations: sparse.csc_matrix, n_tokens: int, quantiles) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Thresholds `[features, levels]`, and CSR `[features · levels, tokens]`: 1 at the highest level reached."""
    n_features = len(activations.indptr) - 1
    thresholds = np.empty((n_features, len(quantiles)), dtype=activations.dtype)
    level = np.empty(activations.nnz, dtype=np.int64)
    for feature, (start, end) in enumerate(zip(activations.indptr, activations.indptr[1:], strict=False)):
        values = activations.data[start:end]
        thresholds[feature] = np.quantile(values, quantiles, method="higher")
        level[start:end] = np.searchsorted(thresholds[feature], values, side="right") - 1
    row = np.repeat(np.arange(n_features), np.diff(activations.indptr)) * len(quantiles) + level
    reached = level >= 0
    entries = np.ones(int(reached.sum()), dtype=np.float32)
    shape = (n_features * len(quantiles), n_tokens)
    return thresholds, sparse.csr_matrix((entries, (row[reached], activations.indices[reached])), shape=shape)


def _selection_f1(firing: sparse.csr_matrix, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """F1 float32 `[features, levels, concepts]`; token counts stay exact in float32 up to 2^24."""
    hits = (firing @ labels.astype(np.float32)).reshape(*shape, labels.shape[1])
    fired = np.asarray(firing.sum(axis=1)).reshape(shape)
    # A token at a level also fires at every level below it.
    for level in range(shape[1] - 2, -1, -1):
        hits[:, level] += hits[:, level + 1]
        fired[:, level] += fired[:, level + 1]
    hits *= 2
    hits /= fired[:, :, None] + labels.sum(axis=0, dtype=np.float32)
    return hits


def _null_f1(firing, labels, molecule, shape, n_permutations: int, rng: np.random.Generator) -> np.ndarray:
    if not shape[0]:
        return np.empty(0)
    maxima = np.empty((n_permutations, shape[0]), dtype=np.float32)
    for i in range(n_permutations):
        # `molecule` is sorted, so sorting by (molecule, random) moves rows only inside their molecule.
        shuffled = labels[np.lexsort((rng.random(len(molecule)), molecule))]
        maxima[i] = _selection_f1(firing, shuffled, shape).max(axis=(1, 2))
    return np.quantile(maxima, 0.95, axis=0, method="higher")


def _count(activations: sparse.csr_matrix, threshold, labels: np.ndarray, column, molecule) -> _Counts:
    keep = activations.data >= threshold[activations.indices]
    token = np.repeat(np.arange(len(molecule)), np.diff(activations.indptr))[keep]
    feature = activations.indices[keep]
    _, group, size = np.unique(molecule, return_inverse=True, return_counts=True)
    hit = labels[token, column[feature]]
    shape = (len(size), len(threshold))
    # Building a CSR matrix adds up repeated (molecule, feature) entries.
    fired = sparse.csr_matrix((np.ones(len(token)), (group[token], feature)), shape=shape)
    hits = sparse.csr_matrix((np.ones(int(hit.sum())), (group[token][hit], feature[hit])), shape=shape)
    positive = np.add.reduceat(labels, np.flatnonzero(np.diff(group, prepend=-1)), axis=0, dtype=np.float64)
    return _Counts(fired, hits, positive, size.astype(np.float64), column)


def _bootstrap(counts: _Counts, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """2.5 % and 97.5 % quantile of F1 over resampled molecules; resamples where F1 is 0/0 do not count."""
    molecules = len(counts.size)
    weights = rng.multinomial(molecules, np.full(molecules, 1 / molecules), size=n).T.astype(np.float64)
    hits, fired = counts.hits.T @ weights, counts.fired.T @ weights
    positive = (counts.positive.T @ weights)[counts.column]
    with np.errstate(invalid="ignore"):
        f1 = 2 * hits / (fired + positive)
    return np.nanquantile(f1, 0.025, axis=1), np.nanquantile(f1, 0.975, axis=1)


def _mantel_haenszel(counts: _Counts) -> np.ndarray:
    """One-sided p of more hits than if labels were exchangeable within molecules; 1 where nothing can vary."""
    fired = counts.fired.tocoo()
    n, size = fired.data, counts.size[fired.row]
    positive = counts.positive[fired.row, counts.column[fired.col]]
    expected = np.bincount(fired.col, n * positive / size, minlength=len(counts.column))
    spread = n * (size - n) * positive * (size - positive) / (size**2 * np.maximum(size - 1, 1))
    variance = np.bincount(fired.col, spread, minlength=len(counts.column))
    excess = counts.total()[0] - expected - 0.5
    z = np.divide(excess, np.sqrt(variance), out=np.full(len(excess), -np.inf), where=variance > 0)
    return stats.norm.sf(z)
