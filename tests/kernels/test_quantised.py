"""Products of bytes that propose candidates: what rounding changes, when they are used, and that nothing is lost."""

import pytest
import torch

from isotrace.kernels import sparse_encode

cpu = pytest.importorskip("isotrace.kernels.cpu", reason="needs Numba")
pytestmark = pytest.mark.skipif(not cpu.has_integer_products(), reason="the CPU has no fast products of bytes")


@pytest.fixture
def used(monkeypatch):
    """Whether each encoding went by bytes."""
    found, plain = [], cpu.select_quantised

    def spied(*args):
        found.append(plain(*args))
        return found[-1]

    monkeypatch.setattr(cpu, "select_quantised", spied)
    return found


def drawn(n: int, d: int, n_features: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = 0.5 + torch.rand(n_features, generator=generator)
    W = torch.randn(n_features, d, generator=generator) * lengths[:, None] / d**0.5
    return torch.randn(n, d, generator=generator), W.T, torch.randn(n_features, generator=generator) / 10


def test_rows_as_bytes():
    rows = torch.cat([drawn(50, 64, 1)[0] * torch.logspace(-9, 9, 50)[:, None], torch.zeros(1, 64)])
    made = cpu.Quantised.of(rows)
    again = made.integers * made.scales[:, None]
    assert made.integers.abs().amax(1).tolist() == [127] * 50 + [0]
    assert ((again - rows).abs() <= 0.5001 * made.scales[:, None]).all()
    assert torch.allclose(made.norms, rows.norm(dim=1))
    assert torch.allclose(made.errors, (again - rows).norm(dim=1), rtol=1e-3)


def test_what_rounding_changes_has_the_deviation_that_is_allowed_for():
    x, W, _ = drawn(400, 96, 600)
    parts, rows = cpu.Quantised.of(x), cpu.Quantised.of(W.T.contiguous())
    exact = x.double() @ W.double()
    rounded = (parts.integers.double() * parts.scales[:, None]) @ (rows.integers.double() * rows.scales[:, None]).T
    deviation = torch.hypot(parts.errors[:, None] * rows.norms, parts.norms[:, None] * rows.errors) / 96**0.5
    apart = (rounded - exact) / deviation
    assert apart.square().mean().sqrt().item() == pytest.approx(1, abs=0.05)
    assert apart.abs().max() < cpu.Z / 2**0.5


@pytest.mark.parametrize("centre", [0.0, 3.0], ids=["centred", "off-centre"])
@pytest.mark.parametrize(("n", "d", "n_features", "k"), [(1100, 64, 1024, 8), (40, 320, 3200, 16), (7, 512, 4099, 32)])
def test_the_selection_is_that_of_single_precision(used, n, d, n_features, k, centre):
    x, W, b = drawn(n, d, n_features)
    x += centre
    values, indices, _ = sparse_encode(x, W, b, k, dtype=torch.bfloat16, backend="numba")
    assert used == [True]
    exact = (x.double() @ W.double() + b).topk(k)
    assert torch.equal(indices.sort().values, exact.indices.sort().values)
    assert torch.allclose(values.sort().values.double(), exact.values.relu().sort().values, rtol=1e-5, atol=1e-5)


def test_features_closer_than_bytes_can_tell_are_told_apart(used):
    x, W, b = drawn(300, 64, 2048)
    W = W.T.contiguous()
    W[:40] = W[0] / W[0].norm()
    b[:40] = torch.linspace(0, 1e-3, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(1))] + 1
    x += 2 * W[0]
    _, indices, _ = sparse_encode(x, W.T, b, 16, dtype=torch.bfloat16, backend="numba")
    exact = (x.double() @ W.T.double() + b).topk(16).indices
    assert used == [True]
    assert (exact < 40).double().mean() > 0.2
    # single precision itself cannot tell some from each other
    assert (indices[:, :, None] == exact[:, None]).any(1).double().mean() > 0.999


@pytest.mark.parametrize("what", ["one dimension of each token", "not a number", "infinite", "width"])
def test_bytes_are_left_where_they_would_not_do(used, what):
    x, W, b = drawn(64, 96, 1024)
    if what == "one dimension of each token":
        x[torch.arange(64), torch.arange(64)] *= 100
    elif what == "width":
        x, W = x[:, :95], W[:95]
    else:
        x[5, 3] = torch.nan if what == "not a number" else torch.inf
    values, indices, _ = sparse_encode(x, W, b, 8, dtype=torch.bfloat16, backend="numba")
    assert used == [False]
    if what == "not a number":
        assert values[5].isnan().all()
    exact = (x.double() @ W.double() + b).topk(8).indices
    rows = torch.arange(64) != 5
    assert torch.equal(indices[rows].sort().values, exact[rows].sort().values)
