import numpy as np
import pytest

from isotrace.stats.share import share


def test_a_share_is_the_ratio_where_the_whole_is_more_than_noise():
    assert share(1.0, 4.0, 0.1) == 0.25
    assert share(3.0, -2.0, 1.9) == -1.5  # signs and shares beyond 1 stay as they are


@pytest.mark.parametrize("whole", [0.0, 1e-6, -1e-6, np.nan, np.inf])
def test_no_share_of_noise(whole):
    assert np.isnan(share(1.0, whole, 1e-6))


@pytest.mark.parametrize("part", [np.nan, np.inf])
def test_no_share_of_an_undefined_part(part):
    assert np.isnan(share(part, 1.0, 0.0))


def test_noise_zero_refuses_only_zero():
    assert share(1e-300, 1e-300, 0.0) == 1.0
    assert np.isnan(share(0.0, 0.0, 0.0))


def test_arrays_broadcast():
    found = share(np.array([1.0, 2.0, 3.0]), np.array([[2.0, 0.5, np.nan], [1.0, 1.0, 1.0]]), np.array([1.0, 1.0, 0.5]))
    np.testing.assert_array_equal(found, [[0.5, np.nan, np.nan], [np.nan, np.nan, 3.0]])
    np.testing.assert_array_equal(share(6, np.array([2, 0]), 0), [3.0, np.nan])
    assert share(np.zeros(0), np.zeros(0), 0.0).shape == (0,)


@pytest.mark.parametrize("noise", [-1.0, np.nan])
def test_noise_is_a_size(noise):
    with pytest.raises(ValueError, match="noise"):
        share(1.0, 1.0, noise)
