"""Predictors on eight planted checkpoints of different widths, which know 0 to all of a task's variance."""

from dataclasses import replace

import numpy as np
import pytest
from planted_embeddings import SHARES, checkpoints
from scipy.stats import spearmanr

from isotrace.transfer.predictors import PREDICTORS
from isotrace.transfer.predictors.scores.logme import fitted

WORLDS = {100: 4, 400: 2}
CONFOUNDED = {  # (predictor, N) → its mean Spearman with the planted share, and why it stays below 0.9
    ("h_score", 100): (0.17, "with N ≤ D it is C − 1 whatever F is, with N near D it rises with D/N"),
    ("h_score", 400): (0.23, "likewise"),
    ("h_score_shrunk", 100): (0.21, "shrinkage does not take all of the rise with D/N away"),
    ("h_score_shrunk", 400): (0.20, "likewise"),
    ("transrate", 100): (0.09, "one informed direction moves it less than chance moves the determinants of 64"),
    ("transrate", 400): (0.38, "likewise"),
    ("nleep", 100): (0.64, "15 components of 100 points follow the noise"),
    ("rogi_xd", 100): (0.87, "distances see all directions, of which one is informed"),
}
NAMES = (
    "probe", "probe_best_layer", "knn", "logme", "h_score", "h_score_shrunk", "transrate", "nleep", "rogi_xd",
    "kernel_alignment",
)  # fmt: skip
SLOW = (("probe", 400), ("probe_best_layer", 100), ("probe_best_layer", 400))


def agreement(score, n: int, seeds: int, **given) -> float:
    """Mean over worlds of Spearman's correlation with the planted share."""
    worlds = [[round(score(one), 9) for one in checkpoints(n, seed, **given)] for seed in range(seeds)]
    return float(np.mean([np.asarray(spearmanr(scores, SHARES))[0] for scores in worlds]))


@pytest.mark.parametrize(
    ("name", "n"),
    [
        pytest.param(name, n, marks=[pytest.mark.nightly] if (name, n) in SLOW else [])
        for name in NAMES
        for n in (100, 400)
    ],
)
def test_the_score_follows_what_a_checkpoint_knows_whatever_its_width(name, n):
    predictor = PREDICTORS[name]
    found = agreement(
        lambda one: predictor.direction * predictor.score(one), n, 1 if name.startswith("probe") else WORLDS[n]
    )
    if (name, n) in CONFOUNDED:
        assert found == pytest.approx(CONFOUNDED[name, n][0], abs=0.1)
        assert found < 0.9
    else:
        assert found >= 0.9


@pytest.mark.parametrize("name", ["h_score", "h_score_shrunk", "nleep", "rogi_xd"])
def test_what_width_confounds_is_right_at_one_small_width(name):
    predictor = PREDICTORS[name]
    found = agreement(lambda one: predictor.direction * predictor.score(one), 400, 2, widths=(64,) * 8)
    assert found >= 0.9


def on_axes(one, k: int):
    """The same on its first `k` principal axes."""
    f = one.embeddings - one.embeddings.mean(0)
    return replace(one, embeddings=f @ np.linalg.svd(f, full_matrices=False)[2][:k].T, layers=(), width=k)


@pytest.mark.parametrize(
    ("name", "k", "of_100", "of_400"),
    [("h_score_shrunk", 32, 0.95, 1.0), ("h_score", 16, 0.92, 1.0), ("transrate", 8, 0.56, 0.89),
     ("nleep", 32, 0.75, 0.79), ("rogi_xd", 16, 0.89, 0.93)],
)  # fmt: skip
def test_fewer_axes_mend_the_h_scores_and_not_the_others(name, k, of_100, of_400):
    """What is confounded by width, at the number of axes of 8, 16, 32 and 64 that is best with 100 labels."""
    predictor = PREDICTORS[name]
    for n, expected in ((100, of_100), (400, of_400)):
        found = agreement(lambda one: predictor.direction * predictor.score(on_axes(one, k)), n, WORLDS[n])
        assert found == pytest.approx(expected, abs=0.05)


def test_without_the_bold_term_wider_embeddings_win_by_mistake():
    def without(one):
        f, y = one.embeddings - one.embeddings.mean(0), one.y - one.y.mean()
        fit = fitted(f, y, len(y) - 1)
        return fit.value + (f.shape[1] - fit.rank) * np.log(fit.alpha) / (2 * len(y))

    assert agreement(without, 100, 4) < 0.5
