"""Metrics on weighted examples, against scikit-learn and SciPy on the examples repeated so many times."""

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as sk

from isotrace.stats.metrics import METRICS, Truth, adjusted_rand, pearson

RNG = np.random.default_rng(0)
N = 40
COUNTS = np.concatenate([np.ones((1, N)), RNG.multinomial(N, np.full(N, 1 / N), 30)]).astype(float)
REFERENCES = {
    "auroc": lambda p, y: sk.roc_auc_score(y, p[:, 0]),
    "auprc": lambda p, y: sk.average_precision_score(y, p[:, 0]),
    "macro_auroc": lambda p, y: np.mean([sk.roc_auc_score(y == c, p[:, int(c)]) for c in np.unique(y)]),
    "balanced_accuracy": lambda p, y: np.mean([(p[y == c].argmax(1) == c).mean() for c in np.unique(y)]),
    "accuracy": lambda p, y: sk.accuracy_score(np.ones(len(y)), p[:, 0]),
    "spearman": lambda p, y: scipy.stats.spearmanr(p[:, 0], y).statistic,
    "rmse": lambda p, y: sk.root_mean_squared_error(y, p[:, 0]),
    "r2": lambda p, y: sk.r2_score(y, p[:, 0]),
}


def examples(metric, ties):
    """(predictions, labels); with ties most values occur several times."""
    rng = np.random.default_rng(1)
    if metric in ("auroc", "auprc"):
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


def test_two_classes_of_one_output():
    """The readout of two classes has one output, the log-odds of the second."""
    predicted, y = examples("auroc", False)
    found = METRICS["balanced_accuracy"](predicted, y, COUNTS)
    assert found[0] == pytest.approx(sk.balanced_accuracy_score(y, predicted[:, 0] > 0))
    both = np.concatenate([0 * predicted, predicted], 1)
    assert np.allclose(found, METRICS["balanced_accuracy"](both, y, COUNTS), rtol=0, atol=1e-12)
    assert found[0] > 0.55


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


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_weighted_pearson_against_scipy(ties):
    predicted, y = examples("r2", ties)
    repeated = [np.repeat(np.arange(N), counts.astype(int)) for counts in COUNTS]
    expected = [scipy.stats.pearsonr(predicted[rows, 0], y[rows]).statistic for rows in repeated]
    assert np.allclose(pearson(predicted[:, 0], y, COUNTS), expected, rtol=1e-12, atol=1e-12)


def test_pearson_of_a_constant_is_nan_however_the_mean_rounds():
    x = np.array([0.1, 0.1, 0.1, 0.7])
    weights = np.array([[1.0, 1, 1, 0], [3, 0, 0, 0], [1, 1, 1, 1]])
    found = pearson(x, np.array([0.3, 1e6, 2.0, 0.4]), weights)
    assert np.isnan(found).tolist() == [True, True, False]


@pytest.mark.parametrize("is_class", [True, False], ids=["class", "value"])
def test_a_prediction_that_is_mostly_zero_needs_only_the_rest(is_class):
    rng = np.random.default_rng(3)
    y = (rng.random(N) < 0.4).astype(float) if is_class else rng.normal(size=N).round(1)
    dense = np.where(rng.random(N) < 0.2, rng.normal(size=N).round(1), 0.0)
    (rows,) = np.nonzero(dense)
    truth = Truth(y, COUNTS, is_class)
    effect, flat = truth.effects(rows, dense[rows])
    everywhere, same = truth.effects(np.arange(N), dense)
    assert np.allclose(effect, everywhere, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert (flat == same).all()
    score = METRICS["auroc" if is_class else "spearman"](dense[:, None], y, COUNTS)
    assert np.allclose(np.where(flat, np.nan, (1 + effect) / 2 if is_class else effect), np.where(flat, np.nan, score))


def test_a_prediction_that_is_the_same_everywhere_has_no_effect():
    effect, flat = Truth(np.array([0.0, 1.0, 1.0]), np.array([[1.0, 1, 1], [0, 2, 1]]), True).effects(
        np.arange(0), np.zeros(0)
    )
    assert flat.all()
    np.testing.assert_array_equal(effect, [0.0, np.nan])


@pytest.mark.parametrize("seed", range(5))
def test_agreement_of_groupings_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, 40), rng.integers(-2, 3, 40)
    renamed, flat = np.where(a == 1, 7, a), np.zeros(40, int)
    for one, other in ((a, b), (a, a), (a, renamed), (a, flat), (a[:1], b[:1]), (a[:0], b[:0])):
        assert adjusted_rand(one, other) == pytest.approx(sk.adjusted_rand_score(one, other), abs=1e-12)
