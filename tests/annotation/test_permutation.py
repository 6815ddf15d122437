"""Shuffling keeps what it should keep, finds what is planted, and cries wolf no more often than it says."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse, stats

from isotrace.annotation.nulls.permutation import Tracks, null_maxima, shuffles
from isotrace.annotation.scores.counting import count, fire, thresholds, token_f1
from isotrace.base.errors import InputError
from isotrace.datasets.concept_table import ConceptTable
from isotrace.domains.domain import Concept
from isotrace.kernels.backend import has_numba
from isotrace.stats.permutation import p_values

QUANTILES = [0.0, 0.6]
needs_numba = pytest.mark.skipif(not has_numba(), reason="the optional numba is not installed")


def table_of(lengths: np.ndarray, labels: np.ndarray) -> ConceptTable:
    """Every token of bool `[tokens, concepts]` that is true is an instance."""
    concept, token = np.nonzero(labels.T)
    return ConceptTable(
        np.concatenate([[0], np.cumsum(lengths)]),
        tuple(Concept(str(i), "test", "token") for i in range(labels.shape[1])),
        np.searchsorted(concept, np.arange(labels.shape[1] + 1)),
        np.arange(len(token) + 1),
        token.astype(np.int32),
        (),
        np.zeros((len(lengths), 0)),
    )


def runs(rng: np.random.Generator, lengths: np.ndarray, n: int, density: float, length: int) -> np.ndarray:
    """bool `[tokens, n]`: runs of `length` tokens at random places of every sequence, cut at its end."""
    parts = []
    for size in lengths:
        starts = rng.random((size + length - 1, n)) < density / length
        steps = np.cumsum(np.concatenate([np.zeros((1, n), dtype=int), starts]), axis=0)
        parts.append(steps[length:] > steps[:-length])
    return np.concatenate(parts)


def fired(rng: np.random.Generator, active: np.ndarray):
    activations = sparse.csr_matrix(active * (0.1 + rng.random(active.shape)).astype(np.float32))
    return fire(activations, thresholds(activations, QUANTILES))


def unrelated(seed: int, n_concepts: int, special: bool = False):
    """Firing and concepts in runs of 8 without any relation; `special`: nothing is at the ends of a sequence, save
    feature 0, and feature 1 is on everything between."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(50, 71, 60)
    features, labels = runs(rng, lengths, 20, 0.15, 8), runs(rng, lengths, n_concepts, 0.15, 8)
    ends = np.cumsum(lengths)
    fixed = np.zeros(len(features), dtype=bool)
    if special:
        fixed[ends - 1] = fixed[ends - lengths] = True
        features[fixed], labels[fixed] = False, False
        features[:, 0], features[:, 1] = fixed, ~fixed
    return fired(rng, features), table_of(lengths, labels), fixed


def largest(firing, table) -> np.ndarray:
    return token_f1(count(firing, table)).max(axis=(1, 2))


def above_uniform(p: np.ndarray) -> float:
    """p of the p-values being no smaller than uniform ones: small where the test cries wolf."""
    return stats.kstest(p, "uniform", alternative="greater").pvalue


@pytest.mark.parametrize("seed", range(2))
def test_p_values_of_runs_are_honest_where_shuffled_tokens_are_not(seed):
    firing, table, fixed = unrelated(seed, n_concepts=300)
    observed = largest(firing, table)
    p = p_values(observed, null_maxima(firing, table, fixed=fixed, n_permutations=199, seed=seed))
    assert (p <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert above_uniform(p) > 0.01
    assert (p <= 0.25).mean() > 0.15  # nor does it never find anything

    rng, labels = np.random.default_rng(seed), np.zeros((table.n_tokens, 300), dtype=bool)
    labels[table.tokens, table.concept_of] = True
    lengths, null = np.diff(table.sequence_ptr), []
    for _ in range(39):
        within = np.lexsort((rng.random(table.n_tokens), table.sequence_of))
        null.append(largest(firing, table_of(lengths, labels[within])))
    naive = p_values(observed, np.stack(null))
    assert (naive <= 0.05).mean() > 0.2
    assert above_uniform(naive) < 1e-6


def test_special_tokens_make_no_finding():
    firing, table, fixed = unrelated(0, n_concepts=300, special=True)
    observed = largest(firing, table)
    arguments = {"n_permutations": 199, "seed": 0}
    p = p_values(observed, null_maxima(firing, table, fixed=fixed, **arguments))
    assert (p <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    moved = p_values(observed, null_maxima(firing, table, fixed=np.zeros_like(fixed), **arguments))
    assert (moved <= 0.05).mean() > 0.3  # feature 1, for being on no special token


def test_what_is_planted_is_found():
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 40, 80)
    starts = np.cumsum(lengths) - lengths
    features, labels = runs(rng, lengths, 30, 0.1, 4), runs(rng, lengths, 4, 0.1, 4)
    features[:, 7] = labels[:, 0] & (rng.random(len(labels)) < 0.7)  # token by token
    whole = np.repeat(rng.random(80) < 0.3, lengths)
    labels[:, 1] = whole  # sequence by sequence
    features[:, 8] = whole & (rng.random(len(labels)) < 0.5)
    labels[:, 2] = np.isin(np.arange(len(labels)), starts)  # by position
    features[:, 9] = labels[:, 2]
    firing, table = fired(rng, features), table_of(lengths, labels)
    observed = token_f1(count(firing, table))
    null = null_maxima(firing, table, fixed=np.zeros(len(labels), dtype=bool), n_permutations=99, seed=0)
    p = p_values(observed, null[:, :, None, None])
    for concept, feature in enumerate((7, 8, 9)):
        assert p[concept, feature, 0] == 0.01
    assert (p[3] > 0.01).all()
    assert p[:, :7].min() > 0.01


@pytest.fixture
def mixed():
    """(sequence_ptr, fixed) of lengths 0 … 40, first and last token fixed in some."""
    rng = np.random.default_rng(5)
    lengths = np.concatenate([[0, 1, 2], rng.integers(3, 41, 90)])
    ptr = np.concatenate([[0], np.cumsum(lengths)])
    fixed = np.zeros(ptr[-1], dtype=bool)
    fixed[ptr[1:60][lengths[:59] > 0] - 1] = True
    return ptr, fixed


def test_a_shuffle_is_a_bijection_within_strata_that_keeps_runs(mixed):
    ptr, fixed = mixed
    tracks = Tracks.of(ptr, fixed)
    n = len(ptr) - 1
    for index in range(5):
        recipient, _ = tracks.shuffle(0, index)
        np.testing.assert_array_equal(np.sort(recipient), np.arange(len(recipient)))
        np.testing.assert_array_equal(tracks.stratum[recipient[:n]], tracks.stratum)
        assert (recipient[:n] != np.arange(n)).mean() > 0.8
        source = tracks.source(0, index)
        np.testing.assert_array_equal(source[fixed], np.flatnonzero(fixed))
        assert not fixed[source[~fixed]].any()
        free = [np.flatnonzero(~fixed[a:b]) + a for a, b in pairwise(ptr)]
        place = {token: (s, i, len(tokens)) for s, tokens in enumerate(free) for i, token in enumerate(tokens)}
        for tokens in free:
            donors = [place[token] for token in source[tokens]]
            for (s, i, length), (next_s, next_i, _) in pairwise(donors):
                assert (next_s, next_i) == (s, (i + 1) % length)


@pytest.mark.parametrize("backend", ["numpy", pytest.param("numba", marks=needs_numba)])
def test_a_track_is_turned(backend):
    """A feature that tells the place of a token is no finding: turned, a label at the first place comes to any."""
    length, n = 20, 200
    first = np.tile(np.arange(length) == 0, n)[:, None]
    firing, table = fired(np.random.default_rng(0), first), table_of(np.full(n, length), first)
    assert largest(firing, table) == 1
    fixed = np.zeros(n * length, dtype=bool)
    maxima = null_maxima(firing, table, fixed=fixed, n_permutations=50, seed=0, backend=backend)
    assert maxima.mean() == pytest.approx(1 / length, abs=0.01)
    for source in shuffles(table.sequence_ptr, 5, 0, fixed=fixed):
        came_to = np.flatnonzero(first[source, 0]) % length
        assert stats.chisquare(np.bincount(came_to, minlength=length)).pvalue > 1e-4


def test_tokens_of_equal_sequences_are_a_bijection():
    sources = list(shuffles(np.arange(0, 301, 10), 3, 0, fixed=np.zeros(300, dtype=bool)))
    for source in sources:
        np.testing.assert_array_equal(np.sort(source), np.arange(300))
    assert (sources[0] != sources[1]).any()


@needs_numba
def test_backends_agree_to_the_bit(mixed):
    ptr, fixed = mixed
    rng, lengths = np.random.default_rng(1), np.diff(ptr)
    labels = runs(rng, lengths, 9, 0.2, 4)  # some on fixed tokens
    labels[:, 3], labels[:, 4] = False, True
    firing, table = fired(rng, runs(rng, lengths, 13, 0.2, 4)), table_of(lengths, labels)
    both = [null_maxima(firing, table, fixed=fixed, n_permutations=6, seed=2, backend=b) for b in ("numpy", "numba")]
    np.testing.assert_array_equal(*both)
    for row, source in zip(both[0], shuffles(ptr, 6, 2, fixed=fixed), strict=True):
        np.testing.assert_array_equal(row, largest(firing, table_of(lengths, labels[source])))
    assert (both[0][:, 3] == 0).all()
    assert np.ptp(both[0][:, 4]) == 0  # a concept on every token cannot be shuffled
    assert both[0][0, 4] == largest(firing, table)[4]


@pytest.mark.parametrize("backend", ["numpy", pytest.param("numba", marks=needs_numba)])
def test_parts_of_a_run_are_the_run(backend):
    firing, table, fixed = unrelated(1, n_concepts=5)

    def part(n: int, start: int = 0, seed: int = 7) -> np.ndarray:
        return null_maxima(firing, table, fixed=fixed, n_permutations=n, seed=seed, start=start, backend=backend)

    whole = part(6)
    np.testing.assert_array_equal(np.concatenate([part(2), part(3, 2), part(1, 5)]), whole)
    assert (part(6, seed=8) != whole).any()
    assert part(0).shape == (0, 5)


def test_a_mask_of_another_shape_is_refused():
    firing, table, fixed = unrelated(1, n_concepts=2)
    for wrong in (fixed[1:], fixed.astype(int)):
        with pytest.raises(InputError, match="one per token"):
            null_maxima(firing, table, fixed=wrong, n_permutations=1, seed=0)
