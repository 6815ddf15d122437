"""Metrics of tasks on weighted examples, against scikit-learn and SciPy on the examples repeated so many times."""

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as sk

from isotrace.discovery.tasks.metrics import METRICS, group_weights
from isotrace.discovery.tasks.sweep import Anchors, interval, pooled

RNG = np.random.default_rng(0)
N = 40
COUNTS = np.concatenate([np.ones((1, N)), RNG.multinomial(N, np.full(N, 1 / N), 30)]).astype(float)
REFERENCES = {
    "auroc": lambda p, y: sk.roc_auc_score(y, p[:, 0]),
    "macro_auroc": lambda p, y: np.mean([sk.roc_auc_score(y == c, p[:, int(c)]) for c in np.unique(y)]),
    "balanced_accuracy": lambda p, y: np.mean([(p[y == c].argmax(1) == c).mean() for c in np.unique(y)]),
    "accuracy": lambda p, y: sk.accuracy_score(np.ones(len(y)), p[:, 0]),
    "spearman": lambda p, y: scipy.stats.spearmanr(p[:, 0], y).statistic,
    "r2": lambda p, y: sk.r2_score(y, p[:, 0]),
}


def examples(metric, ties):
    """(predictions, labels); with ties most values occur several times."""
    rng = np.random.default_rng(1)
    if metric == "auroc":
        y = (rng.random(N) < 0.4).astype(float)
        predicted = (y + rng.normal(size=N))[:, None]
    elif metric in ("balanced_accuracy", "macro_auroc"):
        y = rng.integers(0, 4, N).astype(float)
        predicted = rng.normal(size=(N, 4)) + 2 * np.eye(4)[y.astype(int)]
    elif metric == "accuracy":
        y, predicted = rng.integers(0, 9, N).astype(float), rng.random((N, 2)).round()
    else:
        y = rng.normal(size=N)
        predicted = (y + rng.normal(size=N))[:, None]
    return (predicted.round(), y.round()) if ties else (predicted, y)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("metric", METRICS)
def test_weights_are_counts(metric, ties):
    predicted, y = examples(metric, ties)
    found = METRICS[metric](predicted, y, COUNTS)
    repeated = [np.repeat(np.arange(N), counts.astype(int)) for counts in COUNTS]
    expected = [REFERENCES[metric](predicted[rows], y[rows]) for rows in repeated]
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert found.shape == (31,)
    assert len(np.unique(found)) > 5, "the draws differ"


def test_two_classes_against_scikit_learn():
    predicted, y = examples("balanced_accuracy", False)
    weights = np.ones((1, N))
    assert METRICS["balanced_accuracy"](predicted, y, weights)[0] == sk.balanced_accuracy_score(y, predicted.argmax(1))


def test_draws_that_leave_nothing_to_measure_are_nan_and_the_others_are_not():
    y = np.array([0.0, 0.0, 1.0, 1.0])
    weights = np.array([[1.0, 1, 1, 1], [2, 2, 0, 0], [0, 0, 3, 1]])
    predicted = np.array([[0.1], [0.7], [0.3], [0.9]])
    assert METRICS["auroc"](predicted, y, weights)[0] == 0.75
    assert np.isnan(METRICS["auroc"](predicted, y, weights)[1:]).all()
    assert np.isnan(METRICS["spearman"](predicted, y, weights)[1:]).all()
    assert not np.isfinite(METRICS["r2"](predicted, y, weights)[1:]).any()
    assert np.isnan(METRICS["spearman"](np.ones((4, 1)), y, weights)).all()
    assert METRICS["auroc"](np.ones((4, 1)), y, weights)[0] == 0.5
    both = np.concatenate([1 - predicted, predicted], 1)
    assert METRICS["balanced_accuracy"](both, y, weights).tolist() == [0.5, 0.5, 0.25]
    assert METRICS["accuracy"](both.round(), y, weights).tolist() == [0.5, 0.5, 0.75]


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


def test_shares_relative_to_chance_and_to_nothing_kept():
    subject, empty, circuit = (np.array([v, v]) for v in (0.9, 0.6, 0.7))
    anchors = Anchors(subject, empty, 0.5)
    found = anchors.summary(circuit)
    assert found["value"] == 0.7
    assert found["sufficiency"] == pytest.approx(0.5)
    assert found["faithfulness"] == pytest.approx(1 / 3)
    assert anchors.fall(circuit) == pytest.approx([0.5, 0.5])
    assert anchors.summary(np.array([0.4, np.nan]))["sufficiency"] == pytest.approx(-0.25)
    assert np.isnan(anchors.summary(np.array([0.4, np.nan]))["ci"]).all()


def test_the_interval_of_random_circuits_draws_both_circuits_and_groups():
    same = [np.array([0.5, 0.4, 0.5, 0.6])] * 3
    assert pooled(same, 0)["ci"] == pytest.approx(np.quantile([0.4, 0.5, 0.6], [0.025, 0.975]).tolist())
    spread = [np.full(500, value) for value in (0.0, 1.0)]
    found = pooled(spread, 0)
    assert found["mean"] == 0.5
    assert found["ci"] == [0.0, 1.0]
    assert found["sd"] == pytest.approx(0.5**0.5)
    assert found["n"] == 2
