"""Draws of units and of whole groups, intervals of what is and is not defined, against SciPy."""

import math

import numpy as np
import pytest
import scipy.stats

from isotrace.stats.bootstrap import (
    bootstrap_weights,
    group_weights,
    interval,
    intervals,
    mean_interval,
    pearson_interval,
)
from isotrace.stats.metrics import METRICS


def test_draws_count_units():
    weights = bootstrap_weights(7, 3_000, seed=1)
    assert weights.shape == (3_000, 7)
    assert (weights.sum(1) == 7).all()
    assert weights.mean(0) == pytest.approx(np.ones(7), abs=0.1)
    assert weights.var(0) == pytest.approx(np.full(7, 6 / 7), abs=0.1), "of a binomial, n = 7, p = 1 / 7"
    assert np.array_equal(weights, bootstrap_weights(7, 3_000, seed=1))
    generator = np.random.default_rng(1)
    assert np.array_equal(weights, bootstrap_weights(7, 3_000, generator))
    assert not np.array_equal(weights, bootstrap_weights(7, 3_000, generator)), "a generator goes on"
    assert not np.array_equal(weights, bootstrap_weights(7, 3_000, (1, 2)))


def test_whole_groups_are_drawn():
    groups = ["a", "b", "a", "c", "b", "a"]
    weights = group_weights(groups, 400, seed=3)
    assert weights.shape == (401, 6)
    assert (weights[0] == 1).all()
    assert (weights[:, [0, 1, 3]] == weights[:, [2, 4, 3]]).all()
    assert (weights[:, 0] == weights[:, 5]).all()
    assert (weights[1:, [0, 1, 3]].sum(1) == 3).all()
    assert weights[1:, [0, 1, 3]].mean(0) == pytest.approx([1, 1, 1], abs=0.15)
    assert np.array_equal(weights, group_weights(groups, 400, seed=3))
    assert not np.array_equal(weights, group_weights(groups, 400, seed=4))


def test_interval_of_the_bootstrap_covers():
    """95 % intervals of an AUROC of scores from two normals cover the true value about that often."""
    rng, covered, truth = np.random.default_rng(2), 0, scipy.stats.norm.cdf(1 / 2**0.5)
    for trial in range(200):
        y = np.repeat([0.0, 1.0], 40)
        predicted = (rng.normal(size=80) + y)[:, None]
        draws = METRICS["auroc"](predicted, y, group_weights([str(i) for i in range(80)], 200, trial))
        low, high = interval(draws[1:])
        covered += low <= truth <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_intervals_are_those_of_numpy_column_by_column():
    draws = np.random.default_rng(0).normal(size=(50, 3, 2))
    found = intervals(draws)
    for i, j in np.ndindex(3, 2):
        assert found[:, i, j].tolist() == np.quantile(draws[:, i, j], [0.025, 0.975]).tolist()
        assert interval(draws[:, i, j]) == tuple(found[:, i, j])


def test_few_undefined_draws_are_left_out_and_many_leave_no_interval():
    draws = np.tile(np.random.default_rng(0).normal(size=(100, 1)), 4)
    draws[:4, 1], draws[:5, 2], draws[:, 3] = np.nan, np.inf, np.nan
    found = intervals(draws)
    assert found[:, 0].tolist() == np.quantile(draws[:, 0], [0.025, 0.975]).tolist()
    assert found[:, 1].tolist() == np.quantile(draws[4:, 1], [0.025, 0.975]).tolist()
    assert np.isnan(found[:, 2:]).all()
    any_ = intervals(draws, defined=0)
    assert any_[:, 2].tolist() == np.quantile(draws[5:, 2], [0.025, 0.975]).tolist()
    assert np.isnan(any_[:, 3]).all()
    assert interval(draws[:, 2], defined=0) == tuple(any_[:, 2])
    assert np.isnan(interval(np.zeros(0))).all()
    assert intervals(np.zeros((0, 3))).shape == (2, 3)


def test_pearson_against_scipy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = 0.7 * x + rng.normal(size=60)
    r, low, high = pearson_interval(x, y, seed=0)
    assert r == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-12)
    reference = scipy.stats.bootstrap((x, y), lambda a, b: scipy.stats.pearsonr(a, b).statistic, paired=True,
                                      vectorized=False, n_resamples=1000, method="percentile", rng=1)  # fmt: skip
    assert (low, high) == pytest.approx(tuple(reference.confidence_interval), abs=0.05)
    assert low < r < high
    assert pearson_interval(x, -2 * x, seed=0) == pytest.approx((-1, -1, -1))
    assert pearson_interval(x, y, seed=0) == pearson_interval(x, y, seed=0)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([], []),
        ([1.0, 2.0], [1.0, 2.0]),
        ([0.1] * 7, list(range(7))),
        (list(range(7)), [0.1] * 7),
        ([1.0, 2.0, 3.0, float("nan")], [1.0, 2.0, 3.0, 4.0]),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, float("inf")]),
    ],
    ids=["empty", "two", "constant x", "constant y", "nan", "inf"],
)
def test_pearson_is_nan_where_it_is_undefined(x, y):
    assert all(math.isnan(v) for v in pearson_interval(np.array(x), np.array(y), seed=0))


def test_the_interval_of_a_mean_against_scipy():
    values = np.random.default_rng(0).exponential(size=80)
    low, high = mean_interval(values, seed=0)
    reference = scipy.stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=1)
    assert (low, high) == pytest.approx(tuple(reference.confidence_interval), abs=0.03)
    assert low < values.mean() < high
    assert mean_interval(np.full(5, 2.0), seed=0) == (2.0, 2.0)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_the_interval_of_a_mean_is_nan_where_it_is_undefined(values):
    assert all(math.isnan(v) for v in mean_interval(np.array(values), seed=0))
