"""Maps fitted to carry one set of activations to another."""

import math
from typing import NamedTuple

import numpy as np
import planted
import pytest
import torch

from isotrace.base.errors import InputError
from isotrace.interventions import MLPs, Residuals
from isotrace.steering.directions.direction import DIRECTIONS
from isotrace.steering.directions.maps.linear_transport import at_quantiles, levelled, transport
from isotrace.steering.directions.maps.lineas import Training, fit_maps, shrunk, wasserstein
from isotrace.steering.states import pooled

PLANTED = {2: (1.8, 0.7), 11: (0.5, -1.0), 30: (1.0, 1.5)}
"""Coordinate → (ω, b)."""


class Fit(NamedTuple):
    scale: torch.Tensor
    shift: torch.Tensor
    bias: float

    @property
    def error(self):
        """Distance to the truth."""
        found = [(float(self.scale[at]), float(self.shift[at]), *truth) for at, truth in PLANTED.items()]
        return max(max(abs(scale - w), abs(shift - b)) for scale, shift, w, b in found)

    @property
    def support(self):
        return torch.nonzero((self.scale != 1) | (self.shift != 0))[:, 0].tolist()


def planted_sets(n, d=32, seed=0):
    """Independent draws, but for the planted coordinates: there the target is the image of the source, in another
    order, so that an error is the method's and not that of the draws."""
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    for at, (scale, shift) in PLANTED.items():
        target[:, at] = scale * source[torch.randperm(n, generator=generator), at] + shift
    return source, target


def fitted(source, target, **settings):
    def forward(rows, maps):
        return {0: source[rows] * (1 + maps[0][0]) + maps[0][1]}

    maps, bias = fit_maps(forward, len(source), {0: target}, Training(**settings))
    return Fit(1 + maps[0][0], maps[0][1], bias)


def test_transport_is_the_least_squares_map_of_sorted_values():
    source, target = planted_sets(400)
    scale, shift = transport(source, target)
    for j in (0, 2, 11):
        slope, intercept = np.polyfit(np.sort(source[:, j]), np.sort(target[:, j]), 1)
        assert (float(scale[j]), float(shift[j])) == pytest.approx((slope, intercept), abs=1e-9)
    exact = transport(source, source * 3 - 1)
    torch.testing.assert_close(exact, (torch.full((32,), 3.0).double(), torch.full((32,), -1.0).double()))
    constant = transport(torch.ones(5, 1).double(), torch.full((5, 1), 4.0).double())
    assert [float(x) for x in constant] == [1.0, 3.0]


def test_unequal_numbers_meet_at_quantiles():
    line = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None]
    assert at_quantiles(line, 4)[:, 0].tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=1e-3)
    assert [len(x) for x in levelled(line, line[:7])] == [7, 7]
    source, target = planted_sets(900)
    assert Fit(*transport(source, target[:500]), 0.0).error < 0.25


@pytest.mark.parametrize("seed", range(3))
def test_sparse_maps_find_the_planted_coordinates_alone_and_say_their_bias(seed):
    source, target = planted_sets(2_000, seed=seed)
    full = {"batch": 2_000, "steps": 25, "rate": 0.4, "group": False}
    plain = fitted(source, target, gamma=0.0, **full)
    assert plain.error <= 0.08
    assert plain.bias == 0
    penalised = fitted(source, target, gamma=0.2, refit=False, **full)
    assert penalised.support == sorted(PLANTED)
    assert 0.08 < penalised.error <= 0.13  # a slope of γ pulls either way against one of 2 (ω − truth)
    assert math.isnan(penalised.bias)
    refit = fitted(source, target, gamma=0.2, **full)
    assert refit.support == sorted(PLANTED)
    assert refit.error <= 0.01
    assert refit.bias == pytest.approx(penalised.error, abs=0.01)


@pytest.mark.parametrize("gamma", [0.01, 0.05, 0.1])
def test_small_batches_leave_all_coordinates_in(gamma):
    source, target = planted_sets(600)
    assert len(fitted(source, target, gamma=gamma, batch=32, steps=60, group=False, refit=False).support) == 32


def test_the_penalty_on_a_site_halves_what_is_planted_before_decoys_go():
    source, target = planted_sets(600)
    kept = {}
    for gamma in (0.1, 0.2, 0.3):
        found = fitted(source, target, gamma=gamma, batch=600, steps=60, refit=False)
        slopes = [(float(found.scale[at]) - 1) / (w - 1) for at, (w, _) in PLANTED.items() if w != 1]
        kept[len(found.support)] = max(slopes)
    decoys, alone = (kept[n] for n in (max(kept), min(kept)))
    assert max(kept) > 3 == min(kept)
    assert alone < 0.5 < decoys
    assert fitted(source, target, gamma=0.3, batch=600, steps=60).error < 0.01  # a second fit brings both back


def test_the_cost_is_zero_for_equal_sets_and_its_gradient_goes_through_the_sort():
    source, target = planted_sets(40, d=31)
    assert float(wasserstein(source, source.flip(0))) == 0
    x = source[:6, :2].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: wasserstein(x, target[:15, :2]), (x,))
    assert fitted(source, source, gamma=0.0, steps=5).support == []


def test_the_proximal_step_solves_its_problem():
    """Against coordinates thresholded and groups shrunk by definition, and no better point nearby."""
    x, step = torch.tensor([1.0, -0.3, 0.05]).double(), torch.tensor(0.1)

    def objective(y):
        return 0.5 * (y - x).square().sum() + step * (y.abs().sum() + 3**0.5 * y.norm())

    best = shrunk(x, step, group=True)
    generator = torch.Generator().manual_seed(0)
    near = best + 0.05 * torch.randn(500, 3, generator=generator, dtype=torch.float64)
    assert all(objective(best) <= objective(y) + 1e-9 for y in near)
    assert shrunk(x / 100, step, group=True).tolist() == [0, 0, 0]
    torch.testing.assert_close(shrunk(x, step, group=False), torch.tensor([0.9, -0.2, 0.0]).double())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    subject = planted.subject_of(tmp_path_factory.mktemp("planted"))[0]
    return subject, planted.contrast_of(subject)


def test_transported_sources_lie_where_the_targets_do(world):
    subject, contrast = world
    edits = DIRECTIONS["linear_transport"].fit(subject, contrast, components=Residuals(), layers=(0, 1))
    source, target = ([contrast.examples[i] for i in rows] for rows in (contrast.negative, contrast.positive))
    for layer in (0, 1):
        wanted = pooled(subject, target, Residuals(), (layer,))[layer].mean(0)
        before, after = (
            pooled(subject, source, Residuals(), (layer,), plan=edits.plan(alpha))[layer].mean(0) for alpha in (0, 1)
        )
        assert (after - wanted).norm() < 1e-3 * (before - wanted).norm()
    # half the strength goes half the way in the first layer
    half = pooled(subject, source, Residuals(), (0,), plan=edits.plan(0.5))[0].mean(0)
    ends = [pooled(subject, rows, Residuals(), (0,))[0].mean(0) for rows in (source, target)]
    torch.testing.assert_close(half, (ends[0] + ends[1]) / 2, rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="match the confounds"):
        DIRECTIONS["linear_transport"].fit(subject, contrast.residual("length"))


def test_maps_of_two_sites_lower_the_cost_of_both(world):
    subject, contrast = world
    settings = {"steps": 12, "gamma": 0.0, "batch": 64}
    edits = DIRECTIONS["lineas"].fit(subject, contrast, components=MLPs(), layers=(0, 1), **settings)
    source, target = ([contrast.examples[i] for i in rows] for rows in (contrast.negative, contrast.positive))
    wanted = pooled(subject, target, MLPs(), (0, 1))
    costs = []
    for alpha in (0, 1):
        states = pooled(subject, source, MLPs(), (0, 1), plan=edits.plan(alpha))
        costs.append([float(wasserstein(states[layer], wanted[layer])) for layer in (0, 1)])
    assert costs[1][0] < 0.7 * costs[0][0]
    assert costs[1][1] < 0.7 * costs[0][1]
