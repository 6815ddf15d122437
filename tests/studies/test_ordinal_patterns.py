"""Permutation entropy of series that are known, and factors of a tensor that are."""

import numpy as np
import pytest

from isotrace.base.errors import InputError
from isotrace.studies.learning.ordinal_patterns import (
    entropy_and_complexity,
    matched_cosines,
    nonnegative_factors,
    planted_tensor,
    raw_entropy,
    series,
    stable_rank,
)


@pytest.mark.parametrize(
    ("name", "expected"), [("ramp", (0, 0)), ("white noise", (0.999, 0.001)), ("logistic map", (0.679, 0.399))]
)
def test_known_series_have_the_published_values(name, expected):
    found = entropy_and_complexity(series(20_000, 0)[name], 5)
    assert found == pytest.approx(expected, abs=0.003)


def test_short_noise_reads_as_chaos_and_is_refused():
    rng = np.random.default_rng(0)
    for n, expected in ((5, (0.746, 0.379)), (3, (0.979, 0.020))):
        found = np.mean([raw_entropy(rng.standard_normal(46), n) for _ in range(200)], 0)
        assert found.tolist() == pytest.approx(expected, abs=0.01)
    with pytest.raises(InputError, match="say nothing"):
        entropy_and_complexity(rng.standard_normal(46), 5)


def test_zeros_are_no_ramp():
    h, c = entropy_and_complexity(np.zeros(5_000), 4)
    assert h > 0.99
    assert c < 0.01


def test_planted_factors_are_found():
    tensor, truth = planted_tensor(np.random.default_rng(1))
    factors, explained = nonnegative_factors(tensor, 4, 0)
    assert explained > 0.99
    assert matched_cosines(truth, factors).min() > 0.99
    rows = stable_rank(tensor, range(4, 5), 2, 0)
    assert rows[0]["agreement"] > 0.99
    with pytest.raises(InputError, match="0 or more"):
        nonnegative_factors(-tensor, 2, 0)
