"""What an outcome is sure of: known noise gives the known ceiling, and the bootstrap covers."""

import numpy as np
import pytest

from isotrace.base.errors import InputError
from isotrace.stats.metrics import METRICS
from isotrace.transfer.judging.noise import ceiling, halves, seed_draws, task_ceiling


def from_pearson(r):
    """Spearman's of two normal variables (Pearson 1907)."""
    return 6 / np.pi * np.arcsin(r / 2)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_known_noise_gives_the_known_ceiling(noise):
    """Halves are truth + noise: the truth agrees with their mean by √(1 / (1 + noise² / 2))."""
    rng = np.random.default_rng(int(10 * noise))
    truth = rng.standard_normal(200)
    both = truth + noise * rng.standard_normal((2, 60, 200))
    found = ceiling(both, seed=0, n_draws=300)
    assert found.reason is None
    assert found.low < from_pearson(np.sqrt(1 / (1 + noise**2 / 2))) < found.high
    assert found.high - found.low < 0.2
    assert found.r_half == pytest.approx(from_pearson(1 / (1 + noise**2)), abs=0.08)


def planted(rng, quality, n=120):
    """Labels, 40 scaffolds, and predictions of checkpoints that are label + noise, of one seed."""
    y = rng.standard_normal(n)
    groups = [f"s{i}" for i in rng.integers(40, size=n)]
    noise = rng.standard_normal((len(quality), 1, n)) * quality[:, None, None]
    return (y + noise)[..., None], y, groups


def test_ceiling_is_what_a_perfect_predictor_reaches():
    """On many test parts, the Spearman of the true quality with the outcome is on average what the halves say."""
    rng = np.random.default_rng(0)
    quality = np.linspace(0.8, 1.1, 16)
    reached, said = [], []
    for trial in range(16):
        outputs, y, groups = planted(rng, quality)
        score = np.array([METRICS["r2"](own[0], y, np.ones((1, len(y))))[0] for own in outputs])
        reached.append(np.corrcoef(np.argsort(np.argsort(score)), np.argsort(np.argsort(-quality)))[0, 1])
        said.append(task_ceiling(outputs, y, groups, "r2", trial, 50, 2).value)
    said = np.asarray(said)
    assert np.isfinite(said).all()
    assert np.mean(said) == pytest.approx(np.mean(reached), abs=3 * np.std(reached) / 4)


def test_checkpoints_that_do_not_differ_are_set_apart():
    rng = np.random.default_rng(1)
    apart = [task_ceiling(*planted(rng, np.ones(12)), "r2", trial, 50, 2).apart for trial in range(10)]
    assert sum(apart) >= 5
    outputs, y, groups = planted(rng, np.ones(12))
    assert not task_ceiling(outputs * np.linspace(0.1, 1, 12)[:, None, None, None], y, groups, "r2", 0).apart


def test_reasons():
    rng = np.random.default_rng(2)
    outputs, y, groups = planted(rng, np.linspace(0.1, 2, 6))
    assert "3 checkpoints" in str(task_ceiling(outputs[:3], y, groups, "r2", 0).reason)
    few = (np.arange(len(y)) == 0).astype(float)  # one active molecule: only one half has both classes
    found = task_ceiling(outputs, few, groups, "auroc", 0)
    assert (found.n_splits, found.apart, np.isnan(found.value)) == (0, True, True)
    assert "0 splits" in str(found.reason)
    assert "equal on a half" in str(ceiling(np.ones((2, 60, 6)), 0).reason)
    opposed = np.stack([np.tile(np.arange(6.0), (60, 1)), np.tile(-np.arange(6.0), (60, 1))])
    assert "do not agree" in str(ceiling(opposed, 0).reason)
    with pytest.raises(InputError, match="49 splits"):
        task_ceiling(outputs, y, groups, "r2", 0, 49)


def test_halves_share_no_scaffold():
    rng = np.random.default_rng(3)
    outputs, y, groups = planted(rng, np.linspace(0.1, 2, 4))
    both = halves(outputs, y, groups, "r2", 50, 0)
    assert both.shape == (2, 50, 4)
    whole = np.array([METRICS["r2"](own[0], y, np.ones((1, len(y))))[0] for own in outputs])
    assert both.mean((0, 1)) == pytest.approx(whole, abs=0.1)
    one = np.full_like(outputs, 0.0)
    one[:, :, np.asarray(groups) == groups[0]] = 1e3  # is wrong on one scaffold alone: on one half of every split
    assert ((halves(one, y, groups, "r2", 50, 0) < -100).any(2).sum(0) == 1).all()


def test_seeds_and_scaffolds_are_drawn():
    rng = np.random.default_rng(4)
    outputs, y, groups = planted(rng, np.full(4, 0.8))
    seeds = outputs[:, 0]
    draws = seed_draws(seeds, y, groups, "r2", 500, 0)
    single = [METRICS["r2"](one, y, np.ones((1, len(y))))[0] for one in seeds]
    assert draws[0] == pytest.approx(np.mean(single))
    assert draws.shape == (501,)
    same = seed_draws(np.stack([seeds[0]] * 4), y, groups, "r2", 500, 0)
    assert same == pytest.approx(seed_draws(seeds[:1], y, groups, "r2", 500, 0))
    everywhere = [str(i) for i in range(len(y))]
    fixed = seed_draws(seeds, y, ["one"] * len(y), "r2", 500, 0)
    assert 0 < fixed[1:].std() < draws[1:].std(), "one scaffold: seeds alone vary"
    assert fixed[1:].std() == pytest.approx(np.std(single) / 2, rel=0.15)
    assert seed_draws(seeds, y, everywhere, "r2", 500, 1)[0] == draws[0]
