"""Measures of curvature on losses whose Hessian is known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isotrace.base.errors import InputError
from isotrace.base.progress import silent
from isotrace.transfer.curvature import MEASURES, Loss, View, loss_of, measure_all
from isotrace.transfer.curvature.loss import laid_out
from isotrace.transfer.curvature.measures.density import spectral_density
from isotrace.transfer.curvature.measures.plane import filter_normalised, surface

D = 60


@pytest.fixture(scope="module")
def matrix() -> Tensor:
    """Symmetric, with eigenvalues from −2 to 30 in random directions."""
    generator = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))[0]
    values = torch.cat([torch.linspace(-2, 4, D - 5), torch.tensor([10.0, 14, 19, 24, 30])]).double()
    return frame @ torch.diag(values) @ frame.T


def quadratic(a: Tensor, at: Tensor | None = None, n_examples: int = 1, n_parts: int = 1) -> Loss:
    """½ θᵀAθ, in equal parts."""
    at = torch.zeros(len(a), dtype=a.dtype) if at is None else at
    part = lambda theta: 0.5 * theta @ a @ theta / n_parts  # noqa: E731
    return Loss("quadratic", at, laid_out([("θ", (len(a),), 0)]), (part,) * n_parts, n_examples)


def found(loss: Loss, name: str, seed: int = 0, other: Tensor | None = None, **settings) -> dict:
    rows = measure_all(loss, [name], seed, silent, other=other, settings={name: settings})
    return {row.quantity: row for row in rows}


def test_eigenvalues_of_a_quadratic_are_its_matrix_s(matrix):
    rows = found(quadratic(matrix, n_parts=3), "eigenvalues", smallest=2, tolerance=1e-10, restarts=50)
    expected = torch.linalg.eigvalsh(matrix)
    top = [rows[f"lambda_{i}"].value for i in range(1, 6)]
    assert np.allclose(top, expected.flip(0)[:5], rtol=1e-6, atol=0)
    assert np.allclose([rows["lambda_min"].value, rows["lambda_min_2"].value], expected[:2], rtol=1e-6, atol=0)


def test_eigenvalues_that_do_not_converge_are_nan_with_a_reason(matrix):
    row = found(quadratic(matrix), "eigenvalues", smallest=0, basis=7, tolerance=1e-12, restarts=1)["lambda_1"]
    assert math.isnan(row.value)
    assert "not converged" in row.reason


@pytest.mark.parametrize("name", ["trace", "hutchpp"])
def test_traces_are_within_three_standard_errors(matrix, name):
    row = found(quadratic(matrix), name, draws=200)["trace"]
    assert row.error is not None
    assert abs(row.value - float(matrix.trace())) < 3 * row.error
    assert row.products == (200 if name == "trace" else 220)


def test_the_frobenius_norm_is_within_three_standard_errors(matrix):
    row = found(quadratic(matrix), "trace", draws=200, together=7)["frobenius_squared"]
    assert row.error is not None
    assert abs(row.value - float(matrix.square().sum())) < 3 * row.error


def test_hutchpp_is_exact_where_the_rank_is_low():
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(D, 4, generator=generator, dtype=torch.float64)
    row = found(quadratic(a @ a.T), "hutchpp", sketch=6)["trace"]
    assert row.value == pytest.approx(float(a.square().sum()), rel=1e-9)


def test_the_density_has_the_moments_of_the_spectrum(matrix):
    loss = quadratic(matrix)
    rows = found(loss, "density", starts=40, steps=12)
    for name, power in (("density_mean", 1), ("density_mean_square", 2)):
        expected = float(torch.linalg.matrix_power(matrix, power).trace()) / D
        assert abs(rows[name].value - expected) < 3 * rows[name].error
    whole = spectral_density(View(loss), 0, silent, starts=2, steps=D)
    assert np.allclose(whole.nodes, torch.linalg.eigvalsh(matrix), atol=1e-8)  # re-orthogonalised: no copies
    points = np.linspace(-10, 40, 2_001)
    assert whole.at(points, 0.5).sum() * (points[1] - points[0]) == pytest.approx(1, abs=1e-3)


def test_a_start_in_an_invariant_subspace_ends_early():
    whole = spectral_density(View(quadratic(2 * torch.eye(9).double())), 0, silent, starts=2, steps=5)
    assert whole.nodes[:, 0] == pytest.approx(2)
    assert np.isnan(whole.nodes[:, 1:]).all()
    assert whole.moment(2) == pytest.approx(4)


def test_the_gauss_newton_trace_of_a_linear_softmax_is_its_hessian_s():
    """There both are the same matrix."""
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(40, 5, generator=generator).double(), torch.randint(0, 3, (40,), generator=generator)
    weight = torch.randn(3, 5, generator=generator).double()
    logits = lambda theta: x @ theta.view(3, 5).T  # noqa: E731

    def draw(theta: Tensor, generator: torch.Generator) -> Tensor:
        labels = torch.multinomial(logits(theta).detach().softmax(-1), 1, generator=generator)[:, 0]
        return nn.functional.cross_entropy(logits(theta), labels, reduction="sum") / 40**0.5

    part = lambda theta: nn.functional.cross_entropy(logits(theta), y)  # noqa: E731
    loss = Loss("softmax", weight.flatten(), laid_out([("W", (3, 5), 0)]), (part,), 40, (draw,))
    exact = torch.autograd.functional.hessian(part, weight.flatten()).trace()
    row = found(loss, "fisher", draws=400)["gauss_newton_trace"]
    assert row.error is not None
    assert abs(row.value - float(exact)) < 3 * row.error
    assert row.error < 0.1 * row.value


def test_sharpness_of_a_quadratic_nears_half_its_largest_eigenvalue(matrix):
    rows = found(quadratic(matrix), "sharpness", radius=0.1)
    assert 0.95 * 0.5 * 30 * 0.01 < rows["sharpness"].value <= 0.5 * 30 * 0.01 * (1 + 1e-9)
    assert rows["adaptive_sharpness"].value == 0  # no parameter has a size
    bowl = found(quadratic(torch.eye(4).double(), torch.tensor([1.0, -2, 0, 0]).double()), "sharpness", radius=0.1)
    assert bowl["adaptive_sharpness"].value == pytest.approx(0.5 * (1.1**2 - 1) * 5)  # every one outwards


def test_the_learning_coefficient_of_a_quadratic_is_half_its_dimension():
    """λ = d/2 for a regular model (Watanabe 2009)."""
    loss = quadratic(torch.eye(20).double(), n_examples=50_000, n_parts=2)
    rows = found(loss, "learning_coefficient", steps=1_500, burn_in=300, step_size=1e-5, pull=1.0)
    row = rows["learning_coefficient"]
    assert row.error is not None
    assert row.error < 0.5
    assert abs(row.value - 10) < 3 * row.error
    assert abs(rows["learning_coefficient_drift"].value) < 3 * rows["learning_coefficient_drift"].error


def test_chains_that_have_not_settled_say_so():
    loss = quadratic(torch.eye(20).double(), n_examples=50_000)
    rows = found(loss, "learning_coefficient", steps=40, burn_in=0, step_size=1e-5, pull=1.0)
    assert rows["learning_coefficient_drift"].value > 3 * rows["learning_coefficient_drift"].error


def test_a_chain_that_diverges_is_nan_with_a_reason():
    loss = quadratic(1e30 * torch.eye(3), torch.ones(3), n_examples=10)
    row = found(loss, "learning_coefficient", step_size=1.0)["learning_coefficient"]
    assert math.isnan(row.value)
    assert "step_size" in row.reason


def test_a_convex_loss_has_no_barrier():
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(D, D, generator=generator, dtype=torch.float64)
    first, second = torch.randn(2, D, generator=generator, dtype=torch.float64)
    assert found(quadratic(a @ a.T, first), "barrier", other=second)["barrier"].value == 0


def network(theta: Tensor, x: Tensor, hidden: int) -> Tensor:
    """Two layers with ReLU and no biases, `[n]`."""
    first, second = theta.split([x.shape[1] * hidden, hidden])
    return torch.relu(x @ first.view(hidden, -1).T) @ second


def test_permuted_copies_have_a_barrier():
    """Both fit exactly; half-way their units are mixed."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(200, 6, generator=generator).double()
    w, v = torch.randn(8, 6, generator=generator).double(), torch.randn(8, generator=generator).double()
    y = network(torch.cat([w.flatten(), v]), x, 8)
    loss = loss_of(lambda theta: (network(theta, x, 8) - y).square().mean(), w, v)
    permuted = torch.cat([w.roll(1, 0).flatten(), v.roll(1)])
    rows = found(loss, "barrier", other=permuted)
    assert rows["other_loss"].value == pytest.approx(0, abs=1e-20)
    assert rows["barrier"].value > 0.1
    assert 0 < rows["barrier_at"].value < 1


def test_rescaling_a_relu_network_changes_plain_curvature_and_not_relative():
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(50, 6, generator=generator).double(), torch.randn(50, generator=generator).double()
    w, v = torch.randn(8, 6, generator=generator).double(), torch.randn(8, generator=generator).double()
    names = ["eigenvalues", "trace", "relative", "sharpness"]
    exact = {"tolerance": 1e-9, "restarts": 100}
    settings = {"eigenvalues": exact, "trace": {"draws": 40}, "relative": {"draws": 40, **exact}}
    by_scale = []
    for a in (1.0, 10.0):
        loss = loss_of(lambda theta: (network(theta, x, 8) - y).square().mean(), a * w, v / a)
        rows = measure_all(loss, names, 0, silent, settings=settings)
        by_scale.append({row.quantity: row.value for row in rows})
    plain, rescaled = by_scale
    for name in ("relative_lambda_1", "relative_lambda_min", "relative_trace", "relative_frobenius_squared",
                 "adaptive_sharpness"):  # fmt: skip
        assert rescaled[name] == pytest.approx(plain[name], rel=1e-6)
    for name in ("lambda_1", "trace", "sharpness"):
        assert rescaled[name] > 3 * plain[name]


def test_curvature_is_also_given_for_comparing_sizes(matrix):
    settings = {"trace": {"draws": 200}, "eigenvalues": {"tolerance": 1e-8}}
    rows = measure_all(quadratic(matrix), ["trace", "eigenvalues"], 0, silent, settings=settings)
    by = {row.quantity: row for row in rows}
    assert by["trace_per_parameter"].value == pytest.approx(by["trace"].value / D)
    assert by["lambda_1_over_trace"].value == pytest.approx(30 / by["trace"].value)
    flat = measure_all(quadratic(torch.diag(torch.tensor([1.0, -1] * 30))), ["trace", "eigenvalues"], 0, silent)
    ratio = next(row for row in flat if row.quantity == "lambda_1_over_trace")
    assert math.isnan(ratio.value)
    assert ratio.reason


def test_a_plane_of_filter_normalised_directions():
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(6)).double()
    loss = loss_of(lambda theta: theta[:20].square().sum() + (theta[20:] - 9).square().sum(), weight, torch.ones(3))
    rows = found(loss, "plane", points=5, extent=0.5)
    size = float(weight.square().sum())
    # rows keep their length, the three others do not move: no corner rises by more than (1 + ½ + ½)² − 1 times size
    assert 0 < rows["plane_mean_rise"].value < rows["plane_max_rise"].value <= 3 * size
    assert rows["plane_max_rise"].values == 25


def test_rows_of_a_direction_are_as_long_as_those_of_the_weights():
    """Of a matrix that is stored transposed, the columns."""
    blocks = laid_out([("linear", (3, 4), 0), ("Conv1D", (4, 3), 1), ("bias", (3,), 0)])
    at = torch.randn(27, generator=torch.Generator().manual_seed(7)).double()
    directions = filter_normalised(Loss("any", at, blocks, (torch.sum,), 1), 2, 0)
    linear, turned, bias = (block.of(directions) for block in blocks)
    assert torch.allclose(linear.norm(dim=2), blocks[0].of(at).norm(dim=1).expand(2, 3))
    assert torch.allclose(turned.norm(dim=1), blocks[1].of(at).norm(dim=0).expand(2, 3))
    assert not bias.any()


def test_a_surface_is_the_loss_on_the_plane():
    """½‖θ‖² from the first two axes."""
    found = surface(View(quadratic(torch.eye(3).double())), torch.eye(3).double()[:2], silent, points=3, extent=2.0)
    assert torch.allclose(found, torch.tensor([[4.0, 2, 4], [2, 0, 2], [4, 2, 4]]).double())


@pytest.mark.parametrize(
    ("name", "settings"),
    [("fisher", {}), ("barrier", {}), ("trace", {"draws": 1}), ("eigenvalues", {"basis": 100}),
     ("hutchpp", {"sketch": D}), ("plane", {"points": 4}), ("learning_coefficient", {}), ("nothing", {})],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(matrix, name, settings):
    with pytest.raises(InputError):
        found(quadratic(matrix), name, **settings)


def test_every_measure_says_where_it_is_from_and_what_it_costs():
    assert len(MEASURES) == 10
    assert all(one.source and one.cost for one in MEASURES.values())
