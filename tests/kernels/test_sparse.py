"""Outputs and every gradient of the sparse kernels equal the dense einsum's in float64."""

import pytest
import torch
from torch.nn import functional

from isotrace.kernels import encode_at, sparse_decode, sparse_encode
from isotrace.kernels.backend import has_numba

BACKENDS = [
    "torch",
    pytest.param("numba", marks=pytest.mark.skipif(not has_numba(), reason="the optional numba is not installed")),
]
pytestmark = pytest.mark.parametrize("backend", BACKENDS)
# n_layers, window, tokens, d_in, d_out, F, k
SHAPES = [
    (1, 1, 1, 3, 2, 4, 1),
    (1, 1, 40, 17, 17, 8, 8),
    (3, 1, 33, 8, 5, 200, 2),
    (4, 2, 70, 20, 24, 320, 5),
    (4, 4, 130, 33, 16, 96, 7),
    (2, 2, 20, 8, 8, 64, 64),
]


def dictionary(shape, dtype=torch.float64, transposed=True):
    n_layers, window, tokens, d_in, d_out, n_features, _ = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def random(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    x = random(n_layers, tokens, d_in)
    W_enc = [random(n_features, d_in).T if transposed else random(d_in, n_features) for _ in range(n_layers)]
    b_enc = [random(n_features) for _ in range(n_layers)]
    W_dec = [random(n_features, min(window, n_layers - s) * d_out) for s in range(n_layers)]
    return x, W_enc, b_enc, W_dec, random(n_layers, tokens, d_out)


def leaf(tensor):
    return tensor.detach().requires_grad_()


def dense_decode(dense, W_dec, d_out, window):
    """The definition: one einsum per (source, target) pair."""
    outputs = []
    for target in range(len(dense)):
        sources = range(max(0, target - window + 1), target + 1)
        slots = [slice((target - s) * d_out, (target - s + 1) * d_out) for s in sources]
        pairs = zip(sources, slots, strict=True)
        outputs.append(sum(torch.einsum("nf,fd->nd", dense[s], W_dec[s][:, slot]) for s, slot in pairs))
    return torch.stack(outputs)


def dense_step(shape, x, W_enc, b_enc, W_dec, weights):
    """(output, gradients of x, W_enc, b_enc, W_dec) by definition, float64; the loss is Σ weights · output."""
    x = leaf(x.double())
    W_enc, b_enc, W_dec = ([leaf(w.double()) for w in group] for group in (W_enc, b_enc, W_dec))
    dense = []
    for layer, rows in enumerate(x):
        h = (rows @ W_enc[layer] + b_enc[layer]).relu()
        kept = h.topk(shape[-1]).indices
        dense.append(h * torch.zeros_like(h).scatter(-1, kept, 1.0))
    output = dense_decode(dense, W_dec, shape[4], shape[1])
    (output * weights.double()).sum().backward()
    return output.detach(), [x.grad, *(w.grad for group in (W_enc, b_enc, W_dec) for w in group)]


def sparse_step(shape, x, W_enc, b_enc, W_dec, weights, backend, **options):
    x = leaf(x)
    W_enc, b_enc, W_dec = ([leaf(w) for w in group] for group in (W_enc, b_enc, W_dec))
    options = {"dtype": x.dtype} | options
    encoded = [
        sparse_encode(x[s], W_enc[s], b_enc[s], shape[-1], backend=backend, **options)[:2] for s in range(len(x))
    ]
    values, indices = (list(part) for part in zip(*encoded, strict=True))
    output = sparse_decode(values, indices, W_dec, shape[4], shape[1], backend=backend)
    (output * weights).sum().backward()
    return output.detach(), [x.grad, *(w.grad for group in (W_enc, b_enc, W_dec) for w in group)]


def relative(got, wanted):
    """The largest deviation in units of the largest magnitude."""
    return ((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)).item()


@pytest.mark.parametrize("transposed", [True, False], ids=["feature-major", "contiguous"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_dense_einsum(backend, shape, transposed):
    parts = dictionary(shape, transposed=transposed)
    wanted, gradients = dense_step(shape, *parts)
    got, ours = sparse_step(shape, *parts, backend)
    assert relative(got, wanted) < 1e-12
    assert max(relative(a, b) for a, b in zip(ours, gradients, strict=True)) < 1e-12


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"rescore": True}], ids=str)
def test_single_precision_is_within_its_rounding(backend, shape, options):
    parts = dictionary(shape, torch.float32)
    wanted, gradients = dense_step(shape, *parts)
    got, ours = sparse_step(shape, *parts, backend, **options)
    assert relative(got, wanted) < 1e-6
    assert max(relative(a, b) for a, b in zip(ours, gradients, strict=True)) < 1e-6


def test_inputs_of_any_strides(backend):
    shape = (2, 2, 50, 16, 12, 128, 4)
    x, W_enc, b_enc, W_dec, weights = dictionary(shape)
    wanted, gradients = dense_step(shape, x, W_enc, b_enc, W_dec, weights)
    x = x.transpose(1, 2).contiguous().transpose(1, 2)
    W_enc = [torch.stack([w, w], -1)[..., 0] for w in W_enc]
    W_dec = [w.T.contiguous().T for w in W_dec]
    got, ours = sparse_step(
        shape, x, W_enc, b_enc, W_dec, weights.permute(2, 0, 1).contiguous().permute(1, 2, 0), backend
    )
    assert relative(got, wanted) < 1e-12
    assert max(relative(a, b) for a, b in zip(ours, gradients, strict=True)) < 1e-12


def test_layers_may_differ_in_k_and_unused_slots_add_nothing(backend):
    n_layers, window, tokens, d_out, n_features, counts = 3, 2, 60, 9, 90, (1, 6, 3)
    generator = torch.Generator().manual_seed(5)
    indices = [torch.rand(tokens, n_features, generator=generator).topk(k).indices for k in counts]
    values = [torch.randn(tokens, k, generator=generator, dtype=torch.float64) for k in counts]
    for v, i in zip(values, indices, strict=True):
        unused = torch.rand(v.shape, generator=generator) < 0.4
        unused[7] = True  # a token without any active feature
        v[unused], i[unused] = 0.0, -1
    widths = [min(window, n_layers - s) * d_out for s in range(n_layers)]
    W_dec = [torch.randn(n_features, w, generator=generator, dtype=torch.float64).requires_grad_() for w in widths]
    values = [v.requires_grad_() for v in values]
    weights = torch.randn(n_layers, tokens, d_out, generator=generator, dtype=torch.float64)

    def run(output):
        (output * weights).sum().backward()
        gradients = [t.grad for t in (*values, *W_dec)]
        for tensor in (*values, *W_dec):
            tensor.grad = None
        return [output.detach(), *gradients]

    dense = [
        torch.zeros(tokens, n_features, dtype=torch.float64).scatter_add(-1, i.clamp(min=0), v)
        for v, i in zip(values, indices, strict=True)
    ]
    wanted = run(dense_decode(dense, W_dec, d_out, window))
    got = run(sparse_decode(values, indices, W_dec, d_out, window, backend=backend))
    for layer, i in enumerate(indices):
        wanted[1 + layer][i < 0] = 0.0  # the scatter gives unused slots the gradient of feature 0
    assert max(relative(a, b) for a, b in zip(got, wanted, strict=True)) < 1e-12


def test_no_active_feature_at_all(backend):
    values = [torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)]
    W_dec = [torch.ones(40, 4, dtype=torch.float64, requires_grad=True)]
    output = sparse_decode(values, [torch.full((5, 3), -1)], W_dec, 4, 1, backend=backend)
    output.sum().backward()
    assert not output.any()
    assert not values[0].grad.any()
    assert not W_dec[0].grad.any()


def test_encode_at_chosen_features(backend):
    shape = (1, 1, 50, 12, 1, 96, 5)
    (x,), (W_enc,), (b_enc,), _, _ = dictionary(shape)
    generator = torch.Generator().manual_seed(1)
    indices = torch.rand(50, 96, generator=generator).topk(5).indices
    indices[torch.rand(50, 5, generator=generator) < 0.3] = -1
    used = indices >= 0
    parts = [leaf(t) for t in (x, W_enc, b_enc)]
    chosen = functional.linear(parts[0], parts[1].T, parts[2]).gather(-1, indices.clamp(min=0)) * used
    chosen.square().sum().backward()
    wanted = [chosen.detach(), *(t.grad for t in parts)]
    parts = [leaf(t) for t in (x, W_enc, b_enc)]
    got = encode_at(*parts, indices, backend=backend)
    got.square().sum().backward()
    assert torch.equal(got == 0, ~used)
    ours = [got.detach(), *(t.grad for t in parts)]
    assert max(relative(a, b) for a, b in zip(ours, wanted, strict=True)) < 1e-12


def test_gradients_only_where_asked_for(backend):
    shape = (2, 2, 30, 8, 8, 64, 4)
    x, W_enc, b_enc, W_dec, _ = dictionary(shape)
    values, indices, h = sparse_encode(x[0], leaf(W_enc[0]), b_enc[0], 4, dtype=x.dtype, dense=True, backend=backend)
    assert values.requires_grad
    assert not h.requires_grad
    assert torch.allclose(h, x[0] @ W_enc[0] + b_enc[0])
    W_dec = [W_dec[0], leaf(W_dec[1])]
    sparse_decode([values.detach()] * 2, [indices] * 2, W_dec, 8, 2, backend=backend).sum().backward()
    assert W_dec[0].grad is None
    assert W_dec[1].grad.shape == W_dec[1].shape


def test_autocast_does_not_reach_inside(backend):
    shape = (1, 1, 30, 16, 16, 64, 4)
    (x,), (W_enc,), (b_enc,), (W_dec,), _ = dictionary(shape, torch.float32)

    def run():
        values, indices, _ = sparse_encode(x, W_enc, b_enc, 4, dtype=torch.float32, backend=backend)
        return sparse_decode([values], [indices], [W_dec], 16, 1, backend=backend)

    with torch.autocast("cpu", torch.bfloat16):
        inside = run()
    assert torch.equal(inside, run())
