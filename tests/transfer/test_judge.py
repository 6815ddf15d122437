"""Predictors judged: correlations against SciPy, regret by hand, means and intervals over groups and families."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from isotrace.base.errors import InputError
from isotrace.transfer.judging.agreement import agreement, kendall, regret
from isotrace.transfer.judging.judge import Predictor, compare, groups_needed, judge, standard_error
from isotrace.transfer.judging.matrix import Matrix
from isotrace.transfer.judging.noise import Ceiling


def test_kendall_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(10):
        a, b = rng.integers(5, size=(2, 12)).astype(float)
        drawn = rng.multinomial(12, np.full(12, 1 / 12))
        weights = np.stack([np.ones(12), drawn]).astype(float)
        again = [np.repeat(x, drawn) for x in (a, b)]
        assert kendall(a, b, weights) == pytest.approx([kendalltau(a, b)[0], kendalltau(*again)[0]], abs=1e-12)
    assert np.isnan(kendall(np.ones(4), np.arange(4.0), np.ones((1, 4)))).all()


def test_regret_by_hand():
    y = np.array([0.9, 0.7, 0.8, 0.5])
    assert regret(np.array([4.0, 3.0, 2.0, 1.0]), y, 1) == 0
    assert regret(np.array([1.0, 2.0, 3.0, 4.0]), y, 1) == pytest.approx(0.4)
    assert regret(np.array([1.0, 2.0, 3.0, 4.0]), y, 3) == pytest.approx(0.1)
    assert regret(np.array([1.0, 2.0, 3.0, np.nan]), y, 1) == pytest.approx(0.1), "chosen among those scored"
    assert regret(np.array([np.nan, 2.0, 3.0, 4.0]), y, 3) == pytest.approx(0.1), "the best had no score"
    assert regret(np.array([4.0, 3.0, 2.0, 1.0]), np.array([np.nan, 0.7, 0.8, 0.5]), 1) == pytest.approx(0.1)
    assert np.isnan(regret(np.full(4, np.nan), y, 1))
    assert regret(np.zeros(4), y, 5) == 0


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties_are_taken_in_random_order(k):
    y, scores = np.array([0.9, 0.7, 0.8, 0.5, 0.6]), np.array([1.0, 2.0, 1.0, 1.0, 2.0])
    every = [y[sorted(order, key=lambda i: -scores[i])[:k]].max() for order in map(list, permutations(range(5)))]
    assert regret(scores, y, k) == pytest.approx(0.9 - np.mean(every))


def test_agreement_of_draws_is_that_of_what_was_drawn():
    rng = np.random.default_rng(1)
    s, y = rng.standard_normal((2, 9))
    s[0], y[1] = np.nan, np.nan
    weights = np.concatenate([np.ones((1, 9)), rng.multinomial(9, np.full(9, 1 / 9), 5)])
    found = agreement(s, y, weights)
    for i, w in enumerate(weights.astype(int)):
        again, outcome = np.repeat(s, w), np.repeat(y, w)
        both = np.isfinite(again) & np.isfinite(outcome)
        assert found["spearman"][i] == pytest.approx(spearmanr(again[both], outcome[both])[0])
        assert found["regret_1"][i] == pytest.approx(regret(again, outcome, 1))
    few = np.zeros((1, 9))
    few[0, 2:4] = 5
    assert all(np.isnan(values).all() for values in agreement(s, y, few).values())
    flat = agreement(np.ones(9), y, np.ones((1, 9)))
    assert np.isnan(flat["spearman"]).all()
    assert flat["regret_1"][0] == pytest.approx(np.nanmax(y) - np.nanmean(y))


def made(y, groups=None, families=None):
    c, t = y.shape
    groups = groups or [f"t{j}" for j in range(t)]
    families = families or [f"f{i % 4}" for i in range(c)]
    zeros = np.zeros(y.shape)
    names = tuple(f"c{i}" for i in range(c)), tuple(families), tuple(f"{g}/{j}" for j, g in enumerate(groups))
    return Matrix(*names, tuple(groups), y, zeros.astype(int), zeros, zeros)


def tops(matrix, value=0.8):
    return {task: Ceiling(value, value, value, 0.5, 50, 12) for task in matrix.tasks}


def predictor(scores, name="p", seconds=1.0):
    return Predictor(name, scores, np.full(scores.shape, seconds), np.full(scores.shape, 1e9))


def test_means_are_over_groups_of_tasks():
    """One task is foretold well and has a group of its own; three are foretold badly and are one group."""
    y = np.tile(np.arange(6.0)[:, None], (1, 4))
    scores = np.stack([np.arange(6.0), *[-np.arange(6.0)] * 3], 1)
    matrix = made(y, ["a", "b", "b", "b"], [*"uvwxyz"])
    found = judge(predictor(scores), matrix, tops(matrix), seed=0, n_draws=200)
    assert found.means["spearman"].value == pytest.approx(0)
    assert found.means["spearman"].n_groups == 2
    assert found.means["spearman"].over_groups == pytest.approx((-1, 1))
    assert found.means["regret_1"].value == pytest.approx(2.5)
    assert found.means["regret_3"].value == pytest.approx(1.5)
    assert (found.seconds, found.flops, found.tasks[0].n) == (1, 1e9, 6)
    perfect = judge(predictor(y), matrix, tops(matrix), seed=0, n_draws=200)
    assert perfect.means["share"].value == pytest.approx(1 / 0.8)
    assert perfect.means["share"].over_families == pytest.approx((1.25, 1.25))


def test_tasks_below_the_ceiling_are_apart():
    y = np.tile(np.arange(6.0)[:, None], (1, 2))
    matrix = made(y)
    low = tops(matrix) | {"t1/1": Ceiling(0.29, 0, 0.6, 0.05, 50, 6)}
    found = judge(predictor(np.stack([y[:, 0], -y[:, 0]], 1)), matrix, low, seed=0, n_draws=50)
    assert [task.apart for task in found.tasks] == [False, True]
    assert found.means["spearman"].value == pytest.approx(1)
    none = {task: Ceiling(np.nan, np.nan, np.nan, np.nan, 0, 6, "x") for task in matrix.tasks}
    found = judge(predictor(y), matrix, none, seed=0, n_draws=50)
    assert np.isnan(found.means["spearman"].value)
    with pytest.raises(InputError, match="no ceiling of t0/0"):
        judge(predictor(y), matrix, {}, seed=0)
    with pytest.raises(InputError, match="has scores"):
        judge(predictor(y[:, :1]), matrix, low, seed=0)


def test_intervals_over_families_see_a_family():
    """Between two families a predictor is right, inside each it says nothing: drawn families tell little of it."""
    rng = np.random.default_rng(2)
    family = np.repeat([0.0, 1.0], 8)
    y = family[:, None] + 0.1 * rng.standard_normal((16, 12))
    scores = family[:, None] + 0.1 * rng.standard_normal((16, 12))
    matrix = made(y, families=[str(f) for f in family])
    found = judge(predictor(scores), matrix, tops(matrix), seed=0, n_draws=400).means["spearman"]
    assert found.over_groups[0] > 0.6
    assert found.over_families[0] < 0.2
    alone = judge(predictor(scores), made(y, families=["f"] * 16), tops(matrix), seed=0, n_draws=400)
    assert np.isnan(alone.means["spearman"].over_families).all()


def test_interval_over_groups_covers():
    """Of 60 studies with 15 task groups each, the true mean Spearman lies within in about 57."""
    rng, covered = np.random.default_rng(3), 0
    truth = 6 / np.pi * np.arcsin(np.sqrt(0.5) / 2)
    for trial in range(60):
        y = rng.standard_normal((20, 15))
        matrix = made(y)
        scores = y + rng.standard_normal(y.shape)
        low, high = (
            judge(predictor(scores), matrix, tops(matrix), seed=trial, n_draws=100).means["spearman"].over_groups
        )
        covered += low - 0.02 < truth < high + 0.02  # 20 checkpoints bias a Spearman by that
    assert covered >= 51


def test_power():
    assert standard_error(12) == pytest.approx(1 / np.sqrt(11))
    assert np.isnan(standard_error(1))
    assert groups_needed(0.1, 12) == 35, "the figure of the methods"
    assert groups_needed(0.0, 12) == np.inf


def test_a_win_needs_groups_enough():
    rng = np.random.default_rng(4)
    y = rng.standard_normal((12, 40))
    matrix = made(y)
    judged = {
        (name, n): judge(
            predictor(y[:, :n] + noise * rng.standard_normal((12, n)), name, noise), made(y[:, :n]), tops(matrix),
            seed=0, n_draws=300,
        )
        for n in (4, 40) for name, noise in (("good", 0.2), ("middling", 1.0), ("poor", 3.0))
    }  # fmt: skip
    assert compare(judged["good", 40], judged["poor", 40]).verdict == "better"
    assert compare(judged["poor", 40], judged["good", 40]).verdict == "worse"
    assert compare(judged["good", 40], judged["poor", 40]).times_seconds == pytest.approx(0.2 / 3)
    assert "contains 0" in compare(judged["good", 40], judged["good", 40]).verdict
    with pytest.raises(InputError, match="same outcomes and draws"):
        compare(judged["good", 40], judged["good", 4])
    few = made(y[:, :4], families=[*"abcdefghijkl"])
    swapped = y[:, :4].copy()
    for column in swapped.T:
        order = np.argsort(column)
        column[order] = column[order].reshape(6, 2)[:, ::-1].ravel()
    right, wrong = (judge(predictor(s), few, tops(few), seed=0, n_draws=300) for s in (few.y, swapped))
    assert wrong.means["spearman"].value > 0.9
    assert "4 groups of tasks, and a difference of this size needs" in compare(right, wrong).verdict
