"""Wide nets in the tangent-kernel scaling are lazy, small first weights are rich; the measures are as defined."""

import math

import pytest
import torch

from isotrace.base.errors import InputError
from isotrace.studies.learning.regimes import (
    alignment,
    centred,
    effective_rank,
    kernel,
    tangent_kernel,
    weight_movement,
)
from isotrace.studies.learning.rich_lazy import NETS, STEPS, measured


def test_a_wide_net_is_lazy_and_small_weights_are_rich():
    lazy, rich = (measured(net, 0) for net in NETS[-2:])
    assert NETS[-2].width == 4_096
    assert min(lazy["tangent"], lazy["representation"]) > 0.99
    assert rich["representation"] < 0.5
    assert rich["tangent"] < lazy["tangent"], "XXᵀ is a part of it, however much is learned"
    assert rich["movement"] > 10 * lazy["movement"]
    assert rich["rank_after"] < 0.5 * rich["rank_before"]
    assert max(lazy["steps"], rich["steps"]) < STEPS, "both have learned"


def test_the_measures_are_those_of_simple_weights():
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(4, 3)) == pytest.approx(1, abs=1e-6)
    assert math.isnan(effective_rank(torch.zeros(2, 2)))
    assert weight_movement(torch.eye(3), 3 * torch.eye(3)) == pytest.approx(2)
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    k = kernel(rows)
    torch.testing.assert_close(centred(k), kernel(rows - rows.mean(0)), rtol=0, atol=1e-5)
    assert alignment(k, 7 * k) == pytest.approx(1)
    assert alignment(kernel(torch.eye(2)[:, :1]), kernel(torch.eye(2)[:, 1:])) == 0
    with pytest.raises(InputError, match="same inputs"):
        alignment(k, k[:3, :3])


def test_the_tangent_kernel_is_that_of_all_gradients():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    x = torch.randn(5, 3).double()
    rows = []
    for one in x:
        model.zero_grad()
        model(one).sum().backward()
        rows.append(torch.cat([w.grad.flatten() for w in model.parameters()]))
    found = tangent_kernel(model, lambda i: model(x[i]).sum(), 5)
    torch.testing.assert_close(found, kernel(torch.stack(rows)))
