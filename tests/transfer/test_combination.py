"""Combined predictors: what is left out is never seen, and two halves of the truth are better than one."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from test_judge import made

from isotrace.base.errors import InputError
from isotrace.transfer.judging.combination import combined, mean_rank_elsewhere

GROUPS = ["a", "a", "b", "c", "c", "c", "d", "e"]
FAMILIES = [f"f{i % 4}" for i in range(12)]


def outcomes(seed=0):
    rng = np.random.default_rng(seed)
    return made(rng.standard_normal((12, 1)) + rng.standard_normal((12, 8)), GROUPS, FAMILIES), rng


def worth(scores, y):
    return np.mean([spearmanr(s, o)[0] for s, o in zip(scores.T, y.T, strict=True)])


def test_mean_rank_elsewhere_by_hand():
    y = np.array([[1.0, 9.0, 3.0], [2.0, 7.0, np.nan], [3.0, 8.0, 1.0]])
    elsewhere = mean_rank_elsewhere(made(y, ["a", "a", "b"]))(y)
    assert elsewhere == pytest.approx(np.array([[1, 1, 0.5], [np.nan, np.nan, 0.25], [0, 0, 0.75]]), nan_ok=True)


def test_two_halves_of_the_truth_are_better_than_one():
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((2, 12, 8))
    matrix = made(first + second, GROUPS, FAMILIES)
    noise = rng.standard_normal((12, 8))
    for out in ("groups", "families", "both"):
        scores = combined({"first": first, "noise": noise, "second": second}, matrix, out)
        assert worth(scores, matrix.y) > 0.9 > 0.8 > worth(first, matrix.y)


@pytest.mark.parametrize("out", ["groups", "families", "both"])
def test_outcomes_left_out_change_nothing(out):
    matrix, rng = outcomes()
    features = {"x": rng.standard_normal((12, 8)), "elsewhere": mean_rank_elsewhere(matrix), "all": lambda y: y}
    before = combined(features, matrix, out)
    columns = np.array([g == "c" for g in GROUPS]) if out != "families" else np.zeros(8, dtype=bool)
    rows = np.array([f == "f1" for f in FAMILIES]) if out != "groups" else np.zeros(12, dtype=bool)
    hidden = rows[:, None] | columns
    other = np.where(hidden, rng.standard_normal((12, 8)), matrix.y)
    after = combined(features, made(other, GROUPS, FAMILIES), out)
    cells = {"groups": hidden, "families": hidden, "both": rows[:, None] & columns}[out]
    assert np.array_equal(before[cells], after[cells])
    assert not np.array_equal(before[~hidden], after[~hidden])


@pytest.mark.parametrize("out", ["groups", "families", "both"])
def test_a_leak_gets_no_credit(out):
    """A predictor that is the label wherever it can be had: given as an array it is perfect, asked for what is visible
    it knows nothing where it counts."""
    found = []
    for seed in range(8):
        matrix, rng = outcomes(seed)
        y = rng.standard_normal((12, 8))
        matrix = made(y, GROUPS, FAMILIES)
        assert worth(combined({"label": y}, matrix, out), y) == pytest.approx(1)

        def leaky(visible, rng=rng):
            return np.where(np.isfinite(visible), visible, rng.standard_normal(visible.shape))

        found.append(worth(combined({"leak": leaky}, matrix, out), y))
    assert abs(np.mean(found)) < 4 / np.sqrt(8 * 8 * 11), "within four standard errors of 0"


def test_what_cannot_be_combined():
    matrix, _ = outcomes()
    with pytest.raises(InputError, match="has scores"):
        combined({"x": np.zeros((12, 7))}, matrix, "groups")
    two = made(matrix.y, ["a"] * 4 + ["b"] * 4, FAMILIES)
    with pytest.raises(InputError, match="2 groups of tasks"):
        combined({"x": matrix.y}, two, "both")
    with pytest.raises(InputError, match="2 families"):
        combined({"x": matrix.y}, made(matrix.y, GROUPS, ["f", "g"] * 6), "families")
    assert np.isfinite(combined({"x": matrix.y}, two, "families")).all()
    empty = combined({"x": np.full((12, 8), np.nan)}, matrix, "groups")
    assert (empty == 0).all(), "all at the middle rank: no order"
