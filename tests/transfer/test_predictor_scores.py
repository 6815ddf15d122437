"""Scores in closed form against other ways to compute them, and against what is known of noise."""

import numpy as np
import pytest
from scipy.linalg import null_space

from isotrace.base.errors import InputError
from isotrace.probing.linear import Task
from isotrace.transfer.predictors import PREDICTORS, Evidence
from isotrace.transfer.predictors.scores.kernel_alignment import alignment
from isotrace.transfer.predictors.scores.logme import fitted
from isotrace.transfer.predictors.scores.rogi_xd import roughness


def evidence(f, y, kind: Task = "regression", **given) -> Evidence:
    return Evidence(f, (f,), np.asarray(y, float), kind, np.asarray([str(i) for i in range(len(y))]), **given)


def log_density(y, covariance) -> float:
    """ln N(y; 0, covariance)."""
    lower = np.linalg.cholesky(covariance)
    return -0.5 * float(((np.linalg.solve(lower, y)) ** 2).sum() + len(y) * np.log(2 * np.pi)) - float(
        np.log(np.diag(lower)).sum()
    )


@pytest.mark.parametrize(("n", "width"), [(400, 20), (100, 100), (100, 256), (60, 768)])
def test_logme_is_the_exact_evidence(n, width):
    rng = np.random.default_rng(n + width)
    f = rng.standard_normal((n, width))
    y = f[:, 0] + rng.standard_normal(n)
    plain = fitted(f, y, n)
    covariance = np.eye(n) / plain.beta + f @ f.T / plain.alpha
    assert plain.value == pytest.approx(log_density(y, covariance) / n, abs=1e-8)
    assert plain.rank == min(n, width)
    # centred ones lie in the n − 1 dimensions that are orthogonal to a constant
    basis = null_space(np.ones((1, n))).T
    f, y = f - f.mean(0), y - y.mean()
    centred = fitted(f, y, n - 1)
    covariance = np.eye(n - 1) / centred.beta + basis @ f @ f.T @ basis.T / centred.alpha
    expected = log_density(basis @ y, covariance) / (n - 1)
    assert centred.value == pytest.approx(expected, abs=1e-8)
    assert PREDICTORS["logme"].score(evidence(f + 3, y - 2)) == pytest.approx(expected, abs=1e-8)


def test_logme_has_the_largest_evidence_of_all_priors():
    rng = np.random.default_rng(0)
    f = rng.standard_normal((80, 30))
    y = f[:, :5].sum(1) + rng.standard_normal(80)
    best = fitted(f, y, 80)
    for a, b in ((1.3, 1), (0.7, 1), (1, 1.3), (1, 0.7)):
        covariance = np.eye(80) / (b * best.beta) + f @ f.T / (a * best.alpha)
        assert log_density(y, covariance) / 80 < best.value


def test_logme_of_embeddings_that_say_nothing_and_everything_is_finite():
    rng = np.random.default_rng(1)
    f = rng.standard_normal((100, 30))
    nothing = PREDICTORS["logme"].score(evidence(f, rng.standard_normal(100)))
    everything = PREDICTORS["logme"].score(evidence(f, f @ rng.standard_normal(30)))
    assert -np.inf < nothing < -1 < everything < np.inf
    assert "alike" in PREDICTORS["logme"].row(evidence(np.ones((100, 3)), f[:, 0])).reason


def test_transrate_weighs_classes_by_their_size():
    """3 % actives."""
    rng = np.random.default_rng(2)
    y = np.zeros(200)
    y[:6] = 1
    f = rng.standard_normal((200, 8)) + 2 * y[:, None]
    z = f - f.mean(0)
    z /= np.sqrt((z**2).sum(1))[:, None]

    def rate(rows):
        return 0.5 * np.log(np.linalg.det(np.eye(8) + rows.T @ rows / (len(rows) * 1e-4)))

    given = evidence(f, y, "classification", width=8)
    expected = rate(z) - 0.03 * rate(z[:6]) - 0.97 * rate(z[6:])
    assert PREDICTORS["transrate"].score(given) == pytest.approx(expected, rel=1e-9)
    by_number = rate(z) - 0.5 * rate(z[:6]) - 0.5 * rate(z[6:])
    assert abs(by_number - expected) > 0.5


def test_transrate_says_why_it_compares_no_widths():
    f = np.random.default_rng(3).standard_normal((40, 8))
    assert "width" in PREDICTORS["transrate"].row(evidence(f, f[:, 0])).reason


def test_the_h_score_of_noise_is_all_of_it_unless_it_is_shrunk():
    rng = np.random.default_rng(4)
    noise, y = rng.standard_normal((60, 128)), np.arange(60) % 3
    given = evidence(noise, y, "classification")
    assert PREDICTORS["h_score"].score(given) == pytest.approx(2, abs=1e-8)
    assert PREDICTORS["h_score_shrunk"].score(given) < 0.2


def test_the_h_score_is_the_trace_of_two_covariances():
    rng = np.random.default_rng(5)
    y = np.arange(90) % 3
    f = rng.standard_normal((90, 6)) + y[:, None]
    means = np.stack([f[y == k].mean(0) for k in range(3)])[y]
    expected = np.trace(np.linalg.inv(np.cov(f.T)) @ np.cov(means.T))
    assert PREDICTORS["h_score"].score(evidence(f, y, "classification")) == pytest.approx(expected, rel=1e-9)


def test_a_smooth_property_is_less_rough_than_a_shuffled_one():
    rng = np.random.default_rng(6)
    f = rng.uniform(size=(300, 2))
    smooth = roughness(f, f[:, 0])
    rough = roughness(f, rng.permutation(f[:, 0]))
    assert 0 < smooth < 0.5 * rough
    assert np.isnan(roughness(f, np.ones(300)))
    assert roughness(10 * f + 1, 5 - 3 * f[:, 0]) == pytest.approx(smooth, rel=1e-9)


def test_roughness_by_hand():
    """Two pairs: merged at 0.1 each, n = 2, then at 1: σ 1 → 0.5 → 0 over x 0 → ½ → 1."""
    f = np.asarray([[0.0], [1], [9], [10]])
    found = roughness(f, np.asarray([0.0, 0.5, 0.5, 1]))
    sigma = 2 * np.sqrt(1 / 8), 2 * 0.25, 0
    assert found == pytest.approx(sigma[0] - (sigma[0] + sigma[1]) / 4 - (sigma[1] + sigma[2]) / 4)


def test_kernel_alignment_by_hand():
    f, y = np.asarray([[1.0], [-1], [0], [0]]), np.asarray([[1.0], [-1], [1], [-1]])
    assert alignment(f, y) == pytest.approx(0.5)  # (f·y)² / (f·f · y·y) = 4 / (2 · 4)
    assert alignment(np.repeat(y, 7, 1) + 2, y) == pytest.approx(1)


def test_nleep_of_classes_that_lie_apart_is_0_and_of_noise_the_entropy():
    rng = np.random.default_rng(7)
    y = np.arange(300) % 3
    f = rng.standard_normal((300, 4))
    apart = PREDICTORS["nleep"].score(evidence(f + 30 * np.eye(3, 4)[y], y, "classification"))
    noise = PREDICTORS["nleep"].score(evidence(f, y, "classification"))
    assert apart == pytest.approx(0, abs=1e-6)
    assert -np.log(3) < noise < -0.9


@pytest.mark.parametrize(
    ("f", "y", "kind", "about"),
    [
        (np.ones((30, 2)), np.ones(30), "regression", "alike"),
        (np.ones((10, 2)), np.arange(10), "regression", "few"),
        (np.full((30, 2), np.nan), np.arange(30), "regression", "finite"),
        (np.ones((30, 2)), 1 + np.arange(30) % 2, "classification", "indices"),
        (np.ones((29, 2)), np.arange(30), "regression", "row"),
    ],
)
def test_evidence_that_cannot_be_used_is_refused(f, y, kind, about):
    with pytest.raises(InputError, match=about):
        evidence(f, y, kind)
