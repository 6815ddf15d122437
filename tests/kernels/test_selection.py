"""Which features are kept: exact for any distribution, and the same from a bfloat16 product rescored."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sparse import BACKENDS

from isotrace.kernels import sparse_encode

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def encode_rows(rows, k, backend, **options):
    """Encode with the identity, so that the pre-activations are `rows`."""
    n = rows.shape[1]
    eye, bias = torch.eye(n, dtype=rows.dtype), torch.zeros(n, dtype=rows.dtype)
    values, indices, _ = sparse_encode(rows, eye, bias, k, backend=backend, **({"dtype": rows.dtype} | options))
    return values, indices


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "k"), [(1536, 32), (1600, 100), (257, 4), (40, 16), (8, 8), (9, 1), (1, 1)])
@pytest.mark.parametrize("shift", [0.0, -3.5, 1e6])
def test_the_k_largest_after_relu(backend, dtype, n, k, shift):
    generator = torch.Generator().manual_seed(n)
    rows = (
        torch.randn(60, n, generator=generator, dtype=dtype) * torch.logspace(-4, 4, 60, dtype=dtype)[:, None] + shift
    )
    values, indices = encode_rows(rows, k, backend)
    wanted = rows.topk(k).values.relu()
    assert torch.equal(values.sort(descending=True).values, wanted)
    assert torch.equal(rows.gather(-1, indices).relu(), values)
    assert all(len(set(row)) == k for row in indices.tolist())


@settings(max_examples=60, deadline=None)
@given(row=st.lists(st.integers(-3, 3), min_size=80, max_size=80), k=st.integers(1, 8))
def test_ties_are_broken_but_never_lost(backend, row, k):
    values, indices = encode_rows(torch.tensor([row], dtype=torch.float32), k, backend)
    assert values[0].sort(descending=True).values.tolist() == [max(v, 0) for v in sorted(row, reverse=True)[:k]]
    assert len(set(indices[0].tolist())) == k


def test_all_equal(backend):
    values, indices = encode_rows(torch.full((3, 2048), 0.25), 16, backend, rescore=True)
    assert torch.equal(values, torch.full((3, 16), 0.25))
    assert all(len(set(row)) == 16 for row in indices.tolist())


def test_not_a_number_stays_visible(backend):
    rows = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    rows[2] = torch.nan
    values, _ = encode_rows(rows, 8, backend)
    assert values[2].isnan().all()


@pytest.mark.parametrize("centre", [0.0, 3.0], ids=["centred", "off-centre"])
@pytest.mark.parametrize(("d", "n_features", "k"), [(64, 1024, 8), (256, 2048, 16), (512, 4096, 32)])
def test_bfloat16_candidates_rescored_are_those_of_single_precision(backend, d, n_features, k, centre):
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(256, d, generator=generator) + centre
    W_enc = torch.randn(n_features, d, generator=generator).T / d**0.5
    b_enc = torch.randn(n_features, generator=generator) / 10
    wanted, kept, _ = sparse_encode(x, W_enc, b_enc, k, dtype=torch.float32, backend=backend)
    values, indices, _ = sparse_encode(x, W_enc, b_enc, k, dtype=torch.bfloat16, backend=backend)
    same = (indices[:, :, None] == kept[:, None, :]).any(-1)
    assert same.double().mean() >= 0.999
    deviation = values.sort().values - wanted.sort().values
    assert deviation[same.all(1)].abs().max() / wanted.max() < 1e-6


def test_rescoring_keeps_what_bfloat16_would_lose(backend):
    """Features 0…39 differ by less than bfloat16 can tell, at the k-th place; one input dimension is massive."""
    if backend == "torch":
        pytest.skip("the PyTorch backend proposes 2k candidates, however close they are")
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.nn.functional.normalize(torch.randn(2048, 64, generator=generator), dim=1)
    W_enc[:40] = W_enc[0]
    x = torch.randn(64, 64, generator=generator)
    x[:, 3] += 50
    x[:32] += 40 * W_enc[0]
    b_enc = torch.randn(2048, generator=generator) * 5
    b_enc[:40] = torch.linspace(0, 1e-2, 40)[torch.randperm(40, generator=generator)] + 5
    values, indices, _ = sparse_encode(x, W_enc.T, b_enc, 16, dtype=torch.bfloat16, backend=backend)
    wanted = (x.double() @ W_enc.double().T + b_enc).topk(16)
    assert torch.equal(indices[:32].sort().values, wanted.indices[:32].sort().values)
    assert torch.allclose(values.double().sort().values, wanted.values.relu().sort().values, rtol=1e-5, atol=1e-5)


def test_unusable_arguments_are_refused(backend):
    x, W, b = torch.randn(3, 8), torch.randn(8, 16), torch.zeros(16)
    with pytest.raises(ValueError, match=r"between 1 and 16, not 17"):
        sparse_encode(x, W, b, 17, dtype=torch.float32, backend=backend)
    with pytest.raises(ValueError, match=r"torch.float32\) or bfloat16, not torch.float16"):
        sparse_encode(x, W, b, 4, dtype=torch.float16, backend=backend)
