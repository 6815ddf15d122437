"""p and q of chosen pairs.

    p_selection   on the selection side, against the largest F1 that any feature of the source reaches at any threshold
                  with this concept once its labels are shuffled: corrects for features and thresholds tried
    p_heldout     on the held-out side, the pair itself against its F1 with shuffled labels
    p             the larger of the two: the pair must replicate (conjunction, Nichols et al. 2005)
    q             Benjamini-Hochberg over concepts, of which each counts once, with its best pair; other pairs take the
                  q that their p would have among them

How labels are shuffled says `permutation`, how p and q are counted `stats.permutation`. With n permutations no p is
below 1 / (n + 1).
"""

import numpy as np
from scipy import sparse

from isotrace.annotation.nulls.permutation import shuffles
from isotrace.annotation.scores.counting import use_numba
from isotrace.annotation.scores.token_scores import Pairs
from isotrace.datasets.concept_table import ConceptTable


def pair_null(
    activations: sparse.csc_matrix,
    table: ConceptTable,
    fixed: np.ndarray,
    pairs: Pairs,
    *,
    n_permutations: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(observed token F1 `[pairs]`, null float32 `[permutations, pairs]`) of pairs at their thresholds; `fixed` as in
    `null_maxima`."""
    fires = _firing(activations, pairs)  # [pairs, tokens]
    n_fired = np.diff(fires.indptr)
    dense = np.zeros((len(table.token_concepts), table.n_tokens), dtype=bool)
    dense[np.repeat(table.concept_of, np.diff(table.instance_ptr)), table.tokens] = True
    labels = sparse.csr_matrix(dense, dtype=np.int32)
    count_hits = _numba_hits(fires, pairs, dense) if use_numba("auto") else _plain_hits(fires, pairs, dense)

    def f1(track: np.ndarray) -> np.ndarray:
        # Each token hands its labels on as often as the shuffle takes them, mostly once.
        positive = labels @ np.bincount(track, minlength=table.n_tokens)
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(2 * count_hits(track) / (n_fired + positive[pairs.concept]))

    observed = f1(np.arange(table.n_tokens))
    null = np.empty((n_permutations, len(pairs)), dtype=np.float32)
    for i, track in enumerate(shuffles(table.sequence_ptr, n_permutations, seed, fixed=fixed, sizes=table.sizes)):
        null[i] = f1(track)
    return observed, null


def _plain_hits(fires: sparse.csr_matrix, pairs: Pairs, carries: np.ndarray):
    row_of_concept = np.repeat(pairs.concept * carries.shape[1], np.diff(fires.indptr))

    def hits(track: np.ndarray) -> np.ndarray:
        carried = carries.ravel()[row_of_concept + track[fires.indices]]
        return np.diff(np.concatenate([[0], np.cumsum(carried, dtype=np.int64)])[fires.indptr])

    return hits


def _numba_hits(fires: sparse.csr_matrix, pairs: Pairs, carries: np.ndarray):
    from isotrace.annotation.scores import counting_jit
    from isotrace.kernels import cpu

    indptr = fires.indptr.astype(np.int64)
    inputs, bounds = (indptr, fires.indices.astype(np.int64), pairs.concept), cpu.by_pairs(indptr)

    def hits(track: np.ndarray) -> np.ndarray:
        out = np.empty(len(pairs), dtype=np.int64)
        cpu.parallel(lambda a, b: counting_jit.pair_hits(*inputs, track, carries, out, a, b), bounds)
        return out

    return hits


def _firing(activations: sparse.csc_matrix, pairs: Pairs) -> sparse.csr_matrix:
    """bool CSR `[pairs, tokens]`."""
    indices, counts = [], []
    for feature, threshold in zip(pairs.feature, pairs.threshold, strict=True):
        part = slice(*activations.indptr[feature : feature + 2])
        fired = activations.indices[part][activations.data[part] >= threshold]
        indices.append(fired)
        counts.append(len(fired))
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    flat = np.concatenate([np.zeros(0, dtype=np.int32), *indices])
    return sparse.csr_matrix(
        (np.ones(len(flat), dtype=np.float32), flat, indptr), shape=(len(pairs), activations.get_shape()[0])
    )
