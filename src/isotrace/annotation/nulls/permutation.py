"""How large an F1 chance gives: concepts shuffled among sequences of like length, and every feature tried again.

1. tracks     the labels of a sequence, token by token, all concepts together; special tokens are left out
2. strata     sequences of like length, between which tracks may be exchanged
3. shuffle    every sequence is given the track of a random sequence of its stratum, turned by a random offset
4. statistic  the largest F1 of each concept over all features and thresholds (Westfall and Young 1993, max-T)

Neighbouring tokens are alike, and so are the tokens of one sequence. A track moves as a whole and keeps its runs, so
chance is not underrated as it is where single tokens are shuffled: with unrelated runs of 8 tokens in sequences of 50
to 70, 5.5 % of p are below 0.05 (the excess is the one run that turning cuts), of shuffled tokens' 66 %. What it
breaks is all relation between labels and activations: by place in the sequence, and by which sequence it is.

What a small p does not say:
- A feature that tells position has a small p for `first token`, rightly, and for every concept that lies at one end.
- Sequences count as independent. Near copies (one scaffold, one germline) make p too small: keep one of each.
- Where lengths in a stratum differ, the end of a longer track is cut, the start of a shorter one comes again, and the
  number of tokens with a concept varies a little.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from isotrace.annotation.scores.counting import Backend, Firing, check_tokens, use_numba
from isotrace.base.errors import InputError
from isotrace.datasets.concept_table import ConceptTable
from isotrace.stats.permutation import donors, strata


@dataclass(frozen=True, eq=False)
class Tracks:
    """Tokens put in the order of tracks: those of the sequences without fixed tokens, then each fixed one by itself.

    place: int64 `[tokens]`, the token at each place.
    ptr: int64 `[tracks + 1]`, places of track s are ptr[s] … ptr[s + 1].
    stratum: int64 `[sequences]`.
    """

    place: np.ndarray
    ptr: np.ndarray
    stratum: np.ndarray

    @classmethod
    def of(cls, sequence_ptr: np.ndarray, fixed: np.ndarray, sizes: np.ndarray | None = None) -> "Tracks":
        """Of sequences with tokens sequence_ptr[s] … sequence_ptr[s + 1]; fixed: bool `[tokens]`; sizes: what strata
        are made by, where that is not the number of tokens, see `ConceptTable.sizes`.

        Raises InputError if `fixed` is not that."""
        n, n_tokens = len(sequence_ptr) - 1, int(sequence_ptr[-1])
        if fixed.shape != (n_tokens,) or fixed.dtype != bool:
            raise InputError(f"`fixed` must be bool [{n_tokens}], one per token, not {fixed.dtype} {fixed.shape}.")
        track = np.where(fixed, n + np.cumsum(fixed) - 1, np.repeat(np.arange(n), np.diff(sequence_ptr)))
        ptr = np.concatenate([[0], np.cumsum(np.bincount(track, minlength=n))]).astype(np.int64)
        return cls(np.argsort(track, kind="stable"), ptr, strata(np.diff(ptr)[:n] if sizes is None else sizes))

    @property
    def track_of(self) -> np.ndarray:
        """int64 `[tokens]`, by place."""
        return np.repeat(np.arange(len(self.ptr) - 1), np.diff(self.ptr))

    def shuffle(self, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Permutation number `index`, which depends on it and the seed only: int64 `[tracks]` the recipient of each
        track, and how far it is turned. Place i of a recipient takes place (i + offset) mod length of its donor."""
        rng, n = np.random.default_rng([seed, index]), len(self.stratum)
        recipient, offset = np.arange(len(self.ptr) - 1), np.zeros(len(self.ptr) - 1, dtype=np.int64)
        recipient[donors(self.stratum, rng.random(n))] = np.arange(n)
        offset[:n] = rng.integers(0, np.maximum(np.diff(self.ptr)[:n], 1))
        return recipient, offset

    def source(self, seed: int, index: int) -> np.ndarray:
        """int64 `[tokens]`: the token whose labels each token is given by `shuffle`."""
        recipient, offset = self.shuffle(seed, index)
        donor, length = np.argsort(recipient)[self.track_of], np.diff(self.ptr)
        i = np.arange(len(self.place)) - self.ptr[self.track_of]
        source = np.empty_like(self.place)
        source[self.place] = self.place[self.ptr[donor] + (i + offset[donor]) % length[donor]]
        return source


def shuffles(
    sequence_ptr: np.ndarray, n_permutations: int, seed: int, *, fixed: np.ndarray, start: int = 0,
    sizes: np.ndarray | None = None,
) -> Iterator[np.ndarray]:  # fmt: skip
    """Permutations start, start + 1, … as `Tracks.source` gives them; `fixed` as in `null_maxima`, `sizes` as in
    `Tracks.of`."""
    tracks = Tracks.of(sequence_ptr, fixed, sizes)
    return (tracks.source(seed, start + i) for i in range(n_permutations))


def null_maxima(
    firing: Firing,
    table: ConceptTable,
    *,
    fixed: np.ndarray,
    n_permutations: int,
    seed: int,
    start: int = 0,
    backend: Backend = "auto",
) -> np.ndarray:
    """float32 `[n_permutations, token concepts]`: the largest token F1 of each concept over features and levels, after
    permutations start, start + 1, …; parts of a run put together are the run.

    fixed: bool `[tokens]`, tokens that keep their labels: the special ones. They carry no concept, and features tell
    them from all others; were they shuffled too, firing on everything else would look like a finding.

    Raises InputError if the tokens disagree, and as `use_numba`.
    """
    check_tokens(firing, table)
    tracks = Tracks.of(table.sequence_ptr, fixed, table.sizes)
    labels = _labels(table)
    out = np.zeros((n_permutations, len(table.token_concepts)), dtype=np.float32)
    compute = _numba(firing, tracks, labels) if use_numba(backend) else _plain(firing, tracks, labels)
    for i in range(n_permutations):
        compute(seed, start + i, out[i])
    return out


def _labels(table: ConceptTable) -> sparse.csr_matrix:
    """CSR `[concepts, tokens]`, int32: 1 where a token is in an instance."""
    bounds = table.instance_ptr[table.concept_ptr]
    shape = len(table.token_concepts), table.n_tokens
    labels = sparse.csr_matrix((np.ones(len(table.tokens), np.int32), table.tokens.copy(), bounds), shape=shape)
    labels.sum_duplicates()
    labels.data[:] = 1
    return labels


def _plain(firing: Firing, tracks: Tracks, labels: sparse.csr_matrix):
    by_token, fired = labels.T.tocsr(), firing.fired()
    levels = [firing.at_least(level) for level in range(firing.n_levels)]

    def compute(seed: int, index: int, out: np.ndarray) -> None:
        shuffled = by_token[tracks.source(seed, index)].T.tocsr()
        positive = shuffled.getnnz(axis=1)[:, None]
        for level, fires in enumerate(levels):
            twice = 2 * (shuffled @ fires).toarray()
            f1 = twice.astype(np.float32) / np.maximum(fired[:, level] + positive, 1).astype(np.float32)
            np.maximum(out, f1.max(axis=1, initial=0), out=out)

    return compute


def _numba(firing: Firing, tracks: Tracks, labels: sparse.csr_matrix):
    from isotrace.annotation.scores import counting_jit
    from isotrace.kernels import cpu

    fired = firing.fired().T.astype(np.int32).ravel()
    # Half the bytes where they suffice: reading is what takes the time.
    slots = firing.level.astype(np.uint16 if len(fired) <= 2**16 else np.uint32)
    slots *= slots.dtype.type(firing.n_features)
    slots += firing.feature.astype(slots.dtype)
    n_active = np.diff(firing.indptr)[tracks.place]
    indptr = np.concatenate([[0], np.cumsum(n_active)])
    slots = slots[np.repeat(firing.indptr[tracks.place] - indptr[:-1], n_active) + np.arange(len(slots))]
    # Unsigned, or Numba looks at every index for a negative one.
    indptr = indptr.astype(np.uint32 if len(slots) < 2**32 else np.uint64)

    placed = sparse.csr_matrix(labels[:, tracks.place])
    placed.sort_indices()
    label_ptr, track = placed.indptr.astype(np.int64), tracks.track_of[placed.indices]
    concept = np.repeat(np.arange(len(label_ptr) - 1), np.diff(label_ptr))
    runs = np.flatnonzero(np.diff(concept * len(tracks.ptr) + track, prepend=-1))
    inputs = (indptr, slots, fired, firing.n_features, tracks.ptr, placed.indices.astype(np.int32))
    inputs += (np.searchsorted(runs, label_ptr), np.append(runs, len(track)), track[runs])
    # Going through all features and levels of a concept costs about as much as one label per 50 of them.
    bounds = cpu.by_pairs(label_ptr + np.arange(len(label_ptr)) * (len(fired) // 50))

    def compute(seed: int, index: int, out: np.ndarray) -> None:
        shuffle = tracks.shuffle(seed, index)
        cpu.parallel(lambda a, b: counting_jit.maxima(*inputs, *shuffle, out, a, b), bounds)

    return compute
