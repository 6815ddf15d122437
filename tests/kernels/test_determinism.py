"""The same input gives the same bits wherever its arrays lie in memory: resuming exactly depends on it."""

import numpy as np
import pytest

pytest.importorskip("numba", reason="the Numba backend is the extra isotrace[fast]")

from isotrace.kernels import jit


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [5, 16, 24, 100])
def test_where_arrays_lie_does_not_matter(dtype, width):
    """Rows right behind or right before what is written, at every distance up to 40 numbers."""
    generator = np.random.default_rng(0)
    n_tokens, n_features, n_pairs = 9, 5, 23
    rows = generator.standard_normal((n_tokens, width)).astype(dtype)
    W = generator.standard_normal((n_features, width)).astype(dtype)
    tokens, weights = generator.integers(0, n_tokens, n_pairs), generator.standard_normal(n_pairs).astype(dtype)
    offsets = np.array([0, 4, 4, 11, 12, n_pairs])
    found = set()
    for gap in range(41):
        for first in (True, False):
            memory = np.zeros(gap + rows.size + n_features * width, dtype)
            grad, there = (memory[: n_features * width], memory[n_features * width + gap :])
            if not first:
                there, grad = memory[: rows.size], memory[rows.size + gap :]
            grad, there = grad.reshape(n_features, width), there.reshape(rows.shape)
            there[...] = rows
            g_weights = np.zeros(n_pairs, dtype)
            jit.decode_back(tokens, weights, offsets, there, 0, W, g_weights, grad, 0, width, 0, n_features)
            found.add(grad.tobytes() + g_weights.tobytes())
    assert len(found) == 1
    expected = np.zeros((n_features, width))
    feature = np.repeat(np.arange(n_features), np.diff(offsets))
    np.add.at(expected, feature, weights[:, None].astype(float) * rows[tokens])
    np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-5)
