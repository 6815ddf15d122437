"""p counts shuffles, q is Benjamini-Hochberg over concepts, strata are ranges of length, signs are flipped by rows."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from isotrace.stats.permutation import donors, p_values, q_values, sign_flip, strata


def test_p_is_the_share_of_shuffles_that_reach_what_was_seen():
    null = np.array([[0.1, 0.5], [0.2, 0.5], [0.3, 0.1]])
    assert p_values(np.array([0.2, 0.6]), null).tolist() == [3 / 4, 1 / 4]
    assert p_values(np.array([0.4, 0.0]), null).tolist() == [1 / 4, 1.0]
    assert p_values(np.array([0.4]), np.zeros((0, 1))).tolist() == [1.0]


def test_a_shuffle_that_ties_counts_in_either_precision():
    """F1 are fractions of small whole numbers, so shuffles often tie; the null is kept in float32."""
    hits, total = (part.ravel() for part in np.meshgrid(np.arange(1, 40), np.arange(40, 100)))
    observed = 2 * hits / total
    assert (observed > observed.astype(np.float32)).any()
    assert (p_values(observed, np.tile(observed.astype(np.float32), (19, 1))) == 1).all()


@pytest.mark.parametrize("seed", range(5))
def test_q_is_benjamini_hochberg_when_every_concept_has_one_pair(seed):
    p = np.random.default_rng(seed).integers(1, 20, 30) / 20  # with ties
    found = q_values(p, np.ones(30, dtype=bool), 30)
    np.testing.assert_allclose(found, stats.false_discovery_control(p))


@pytest.mark.parametrize("seed", range(5))
def test_concepts_without_a_pair_count_as_one(seed):
    p = np.random.default_rng(seed).beta(0.3, 1, 12)
    found = q_values(p, np.ones(12, dtype=bool), 20)
    np.testing.assert_allclose(found, stats.false_discovery_control(np.append(p, np.ones(8)))[:12])


@pytest.mark.parametrize("seed", range(5))
def test_further_pairs_take_the_q_of_the_next_larger_p(seed):
    """Not smaller than what they would get if they were added, and none decides about another."""
    rng = np.random.default_rng(seed)
    p, best = rng.beta(0.3, 1, 40), np.arange(40) < 15
    found = q_values(p, best, 15)
    reference = stats.false_discovery_control(p[best])
    np.testing.assert_allclose(found[best], reference)
    for value, q in zip(p[~best], found[~best], strict=True):
        above = p[best] >= value
        assert q == pytest.approx(reference[above].min() if above.any() else 1.0)
    assert (np.diff(found[np.argsort(p)]) >= 0).all()


def test_no_pair_at_all():
    assert q_values(np.zeros(0), np.zeros(0, dtype=bool), 3).shape == (0,)


def test_p_of_what_was_not_observed_is_nan_and_null_broadcasts():
    null = np.array([[0.1, 0.5], [0.2, 0.5], [0.3, 0.5]])
    np.testing.assert_array_equal(p_values(np.array([np.nan, 0.5]), null), [np.nan, 1.0])
    pairs = np.array([[0.0, 0.4], [0.5, 0.6]])
    np.testing.assert_array_equal(p_values(pairs, null[:, :, None]), [[1, 1 / 4], [1, 1 / 4]])


def test_q_without_anything_tested():
    assert q_values(np.zeros(0), np.zeros(0, dtype=bool), 0).shape == (0,)


@pytest.mark.parametrize("lengths", [[5] * 30, [0, 0, 3, 4], [7], [0], np.arange(100), [1] * 25 + [50] * 3])
def test_strata_are_ranges_of_length_with_enough_members(lengths):
    lengths = np.asarray(lengths)
    stratum = strata(lengths)
    order = np.argsort(lengths, kind="stable")
    assert (np.diff(stratum[order]) >= 0).all()
    for members in (lengths[stratum == s] for s in np.unique(stratum)):
        assert (members == 0).all() or (members > 0).all()
        assert len(members) >= min(20, (lengths > 0).sum()) or (members == 0).all()
        assert len(members) < 60 or len(np.unique(members)) == 1


def test_donors_stay_within_the_stratum_and_every_order_is_as_likely():
    stratum, rng = np.array([1, 0, 1, 0, 1, 2]), np.random.default_rng(0)
    found = np.array([donors(stratum, rng.random(6)) for _ in range(6_000)])
    assert (np.sort(found, axis=1) == np.arange(6)).all()
    assert (stratum[found] == stratum).all()
    orders, counts = np.unique(found, axis=0, return_counts=True)
    assert len(orders) == 6 * 2
    assert stats.chisquare(counts).pvalue > 1e-3


def test_sign_flip_against_enumeration():
    rng = np.random.default_rng(0)
    effects = rng.normal(1.0, 1.0, (8, 3)) * [1.0, 5.0, 0.2] + [1.0, -4.0, -0.1]
    signs = np.array(list(product([-1.0, 1.0], repeat=8)))

    def t(values):
        return np.abs(values.mean(-2)) / values.std(-2)

    largest = t(signs[:, :, None] * effects).max(1)
    exact = (largest[:, None] >= t(effects) - 1e-12).mean(0)
    assert np.allclose(sign_flip(effects, rng, 20_000), exact, atol=0.015)
    assert exact.min() < 0.1 < exact.max()


def test_sign_flip_of_noise_holds_its_level():
    rng = np.random.default_rng(1)
    smallest = np.array([sign_flip(rng.normal(size=(20, 30)), rng, 200).min() for _ in range(300)])
    assert 0.02 < (smallest <= 0.05).mean() < 0.09
