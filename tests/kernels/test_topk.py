"""The k largest entries, found by group maxima, are those a full sort finds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isotrace.kernels.topk import topk


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize(("n", "k"), [(1536, 32), (256, 4), (257, 4), (40, 16), (8, 8)])
def test_same_values_as_a_sort_and_indices_that_point_at_them(n, k, backend):
    rows = torch.randn(50, 3, n, generator=torch.Generator().manual_seed(n))
    values, indices = topk(rows, k, backend=backend)
    assert torch.equal(values.sort(descending=True).values, rows.sort(descending=True).values[..., :k])
    assert torch.equal(rows.gather(-1, indices), values)
    assert all(len(set(row)) == k for row in indices.flatten(0, 1).tolist())


@pytest.mark.parametrize("backend", ["torch", "numba"])
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=64, max_size=64), st.integers(1, 3))
def test_ties_are_broken_but_never_lost(backend, row, k):
    values, indices = topk(torch.tensor([row], dtype=torch.float32), k, backend=backend)
    assert values[0].sort(descending=True).values.tolist() == sorted(row, reverse=True)[:k]
    assert len(set(indices[0].tolist())) == k


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_gradient_reaches_the_chosen_entries_only(backend):
    rows = torch.randn(4, 512, requires_grad=True)
    values, indices = topk(rows, 5, backend=backend)
    values.sum().backward()
    assert torch.equal(rows.grad, torch.zeros_like(rows).scatter(-1, indices, 1.0))


def test_what_is_no_number_is_not_lost():
    rows = torch.randn(3, 512)
    rows[1, 7] = torch.nan
    assert topk(rows, 5)[0].isnan().any(1).tolist() == [False, True, False]
