"""Random sets that resemble a given one."""

import numpy as np
import pytest

from isotrace.stats.matching import log_frequency, matched


def test_as_many_of_every_stratum_each_once_and_near_in_frequency():
    rng = np.random.default_rng(0)
    pools = [log_frequency(rng.random(n)) for n in (50, 80)]
    strata = rng.integers(0, 2, 20)
    frequencies = log_frequency(rng.random(20))
    for seed in range(20):
        members, places = matched(strata, frequencies, pools, np.random.default_rng(seed))
        assert sorted(members) == [*range(20)]
        drawn = {(strata[m], p) for m, p in zip(members, places, strict=True)}
        assert len(drawn) == 20, "none twice"
        free = [np.ones(len(pool), dtype=bool) for pool in pools]
        for member, place in zip(members, places, strict=True):
            stratum = strata[member]
            distance = np.abs(pools[stratum] - frequencies[member])
            nearest = np.flatnonzero(free[stratum])[distance[free[stratum]].argsort()[:10]]
            assert place in nearest
            free[stratum][place] = False


def test_every_one_of_the_nearest_is_drawn_about_equally_often():
    pool = np.arange(30.0)
    places = [matched([0], np.array([10.2]), [pool], np.random.default_rng(s), neighbours=4)[1][0] for s in range(800)]
    names, counts = np.unique(places, return_counts=True)
    assert names.tolist() == [9, 10, 11, 12]
    assert counts.min() > 140  # of 200 expected, standard deviation 12


def test_what_may_not_be_drawn_is_not():
    pool = np.array([1.0, 1.0, np.inf, 1.1])
    for seed in range(20):
        assert 2 not in matched([0, 0, 0], np.ones(3), [pool], np.random.default_rng(seed))[1]
    assert np.isinf(pool[2])
    assert np.isfinite(pool[[0, 1, 3]]).all(), "the caller's pool is left alone"


def test_what_never_happens_has_a_frequency():
    assert np.isfinite(log_frequency(np.array([0.0, 1.0]))).all()
    assert log_frequency(np.array([0.5]))[0] == pytest.approx(np.log(0.5), abs=1e-8)
