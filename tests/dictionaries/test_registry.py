"""Every registered architecture: configuration, saving, and function and gradients against a dense reference."""
# ruff: noqa: F722  (shape annotations are not Python expressions)

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, Int64, jaxtyped
from pydantic import TypeAdapter
from torch import Tensor

import tiny
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.registry import ARCHITECTURES, architecture
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary
from isotrace.errors import DictionaryError
from isotrace.training.losses import reconstruction

WINDOWS = (1, 2, tiny.N_LAYERS)
AUXILIARY, AUXILIARY_K = 0.25, 2


@pytest.fixture(params=sorted(ARCHITECTURES))
def cls(request):
    return ARCHITECTURES[request.param]


def make(cls, subject, window=tiny.N_LAYERS):
    dictionary = tiny.random_dictionary(subject, window=window)
    assert type(dictionary) is cls
    return dictionary


def inputs(d, tokens=11):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, tiny.N_LAYERS, tokens, d, generator=generator)


def dense_reference(dictionary, x, parameters):
    """(m̂ `[layers, tokens, d]`, pre-activations, activations `[layers, tokens, F]`) from one decoder tensor
    `[source, target, F, d]` with zeros where nothing is written."""
    w_enc, b_enc, w_dec, b_dec = parameters
    c = dictionary.config
    h = torch.einsum("ltd,ldf->ltf", x, w_enc) + b_enc[:, None]
    a = h.clamp(min=0)
    smallest = a.sort(-1, descending=True).values[..., c.k - 1 : c.k]
    a = a * (a >= smallest)
    source, target = torch.meshgrid(torch.arange(c.n_layers), torch.arange(c.n_layers), indexing="ij")
    writes = (target >= source) & (target < source + c.window)
    return torch.einsum("stf,sufd,su->utd", a, w_dec, writes.to(a)) + b_dec[:, None], h, a


def dense_parameters(dictionary):
    c = dictionary.config
    w_dec = torch.zeros(c.n_layers, c.n_layers, c.n_features, c.d_out)
    for s in range(c.n_layers):
        for slot, t in enumerate(range(s, min(s + c.window, c.n_layers))):
            w_dec[s, t] = dictionary.W_dec[s][:, slot * c.d_out : (slot + 1) * c.d_out]
    parts = [torch.stack(list(dictionary.W_enc)), torch.stack(list(dictionary.b_enc)), w_dec,
             torch.stack(list(dictionary.b_dec))]  # fmt: skip
    return [p.detach().clone().requires_grad_(True) for p in parts]


def dense_loss(dictionary, x, y, dead, parameters):
    """The training loss, written a second time."""
    y_hat, h, _ = dense_reference(dictionary, x, parameters)
    variance = ((y - y.mean(1, keepdim=True)) ** 2).mean((1, 2))
    loss = (((y - y_hat) ** 2).mean((1, 2)) / variance).sum()
    for layer in range(len(x)):
        if dead[layer].any():
            masked = torch.where(dead[layer], h[layer], -torch.inf).clamp(min=0)
            smallest = masked.sort(-1, descending=True).values[:, AUXILIARY_K - 1 : AUXILIARY_K]
            part = (masked * (masked >= smallest)) @ parameters[2][layer, layer]
            residual = (y - y_hat)[layer].detach()
            loss = loss + AUXILIARY * ((residual - part) ** 2).mean() / (residual**2).mean()
    return loss


@pytest.mark.parametrize("window", WINDOWS)
def test_config_round_trip(cls, rotary, window):
    adapter, config = TypeAdapter(DictionaryConfig), make(cls, rotary, window).config
    assert adapter.validate_json(adapter.dump_json(config)) == config
    assert architecture(config.architecture) is cls


@pytest.mark.parametrize("window", WINDOWS)
def test_save_and_load(cls, rotary, window, tmp_path):
    dictionary = make(cls, rotary, window)
    save_dictionary(dictionary, tmp_path / "d", reference(rotary), dtype=torch.float32, training={"tokens": 1})
    loaded = load_dictionary(tmp_path / "d", rotary)
    x, _ = inputs(rotary.d_model)
    assert torch.equal(loaded(x), dictionary(x))
    assert loaded.config == dictionary.config
    for name, value in dictionary.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("window", WINDOWS)
def test_output_and_gradients_are_those_of_the_dense_reference(cls, rotary64, window):
    dictionary = make(cls, rotary64, window).requires_grad_(True)
    x, y = inputs(rotary64.d_model)
    parameters = dense_parameters(dictionary)
    y_hat, _, a = dense_reference(dictionary, x, parameters)
    torch.testing.assert_close(dictionary(x), y_hat, rtol=1e-12, atol=1e-12)
    dead = torch.rand(len(x), dictionary.config.n_features, generator=torch.Generator().manual_seed(2)) < 0.4
    dead[1] = False
    out = reconstruction(dictionary, x, y, dead, AUXILIARY, AUXILIARY_K)
    expected = dense_loss(dictionary, x, y, dead, parameters)
    torch.testing.assert_close(out.total, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(out.fired, (a > 0).any(1))
    torch.testing.assert_close(
        out.fve, 1 - ((y - y_hat) ** 2).mean((1, 2)) / y.var(1, correction=0).mean(-1), rtol=1e-12, atol=1e-12
    )
    out.total.backward()
    expected.backward()
    w_enc, b_enc, w_dec, b_dec = (p.grad for p in parameters)
    for layer in range(len(x)):
        targets = dictionary.config.targets(layer)
        pairs = [(dictionary.W_enc[layer], w_enc[layer]), (dictionary.b_enc[layer], b_enc[layer]),
                 (dictionary.b_dec[layer], b_dec[layer]),
                 (dictionary.W_dec[layer], torch.cat([w_dec[layer, t] for t in targets], -1))]  # fmt: skip
        for found, wanted in pairs:
            torch.testing.assert_close(found.grad, wanted, rtol=1e-10, atol=1e-12)
            assert float(wanted.abs().max()) > 0


@pytest.mark.parametrize("window", WINDOWS)
def test_the_decoders_agree(cls, rotary64, window):
    """decode, decode_all, write_vectors and decoder say the same."""
    dictionary = make(cls, rotary64, window)
    x, _ = inputs(rotary64.d_model)
    sparse = [dictionary.encode(layer, x[layer]) for layer in range(len(x))]
    dense = {layer: s.dense(dictionary.config.n_features) for layer, s in enumerate(sparse)}
    whole = dictionary.decode_all(list(dense.values()))
    for target in range(len(x)):
        torch.testing.assert_close(dictionary.decode(target, dense), whole[target], rtol=1e-12, atol=1e-12)
    total = torch.stack([b.expand(x.shape[1], -1) for b in dictionary.b_dec]).clone()
    for source, s in enumerate(sparse):
        rows = dictionary.write_vectors(source, s.indices)
        assert rows.shape[-2] == min(window, len(x) - source)
        for slot, target in enumerate(dictionary.config.targets(source)):
            torch.testing.assert_close(rows[..., slot, :], dictionary.decoder(source, target)[s.indices])
            total[target] += (s.values[..., None] * rows[..., slot, :]).sum(-2)
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)


def test_encode_keeps_the_k_largest_positive(cls, rotary64):
    dictionary = make(cls, rotary64)
    x, _ = inputs(rotary64.d_model, tokens=50)
    x[:, 0] = 0  # with a zero input only biases speak
    for layer in range(len(x)):
        h, sparse = dictionary.preactivations(layer, x[layer]), dictionary.encode(layer, x[layer])
        dense = sparse.dense(dictionary.config.n_features)
        assert int((dense > 0).sum(-1).max()) <= dictionary.config.k
        for row, values in zip(h, dense, strict=True):
            best = sorted((v for v in row.tolist() if v > 0), reverse=True)[: dictionary.config.k]
            assert sorted(values[values > 0].tolist(), reverse=True) == best
            assert bool((values[values > 0] == row[values > 0]).all())


def test_company_and_padding_change_nothing(cls, rotary64):
    """Tokens are encoded one by one: batch shape and padding rows do not matter."""
    dictionary = make(cls, rotary64)
    x, _ = inputs(rotary64.d_model)
    whole = dictionary(x)
    torch.testing.assert_close(dictionary(x[:, 3:5]), whole[:, 3:5], rtol=1e-12, atol=1e-12)
    padded = torch.cat([x, torch.full_like(x, 1e3)], 1)
    torch.testing.assert_close(dictionary(padded)[:, : x.shape[1]], whole, rtol=1e-12, atol=1e-12)
    for layer in range(len(x)):
        batched = dictionary.encode(layer, x[layer][None].expand(2, -1, -1)).dense(dictionary.config.n_features)
        single = dictionary.encode(layer, x[layer]).dense(dictionary.config.n_features)
        torch.testing.assert_close(batched, single.expand(2, -1, -1), rtol=1e-12, atol=1e-12)


def test_decoder_norms_belong_to_features(cls, rotary64):
    dictionary = make(cls, rotary64, window=2)
    norms = dictionary.decoder_norms()
    assert norms.shape == (tiny.N_LAYERS, dictionary.config.n_features)
    for source in range(tiny.N_LAYERS):
        parts = [dictionary.decoder(source, t).square().sum(-1) for t in dictionary.config.targets(source)]
        torch.testing.assert_close(norms[source], torch.stack(parts).sum(0).sqrt())


def test_shapes(cls, rotary):
    dictionary = make(cls, rotary)
    x, y = inputs(rotary.d_model)
    sparse = dictionary.encode(0, x[0])

    @jaxtyped(typechecker=beartype)
    def check(
        x: Float[Tensor, "layers tokens d"],
        output: Float[Tensor, "layers tokens d"],
        indices: Int64[Tensor, "tokens k"],
        values: Float[Tensor, "tokens k"],
        dense: Float[Tensor, "tokens features"],
        fired: Tensor,
    ) -> None:
        pass

    dead = torch.zeros(tiny.N_LAYERS, dictionary.config.n_features, dtype=torch.bool)
    fired = reconstruction(dictionary, x, y, dead, 0.0, 1).fired
    check(x, dictionary(x), sparse.indices, sparse.values, sparse.dense(dictionary.config.n_features), fired)
    assert (fired.shape, fired.dtype) == (dead.shape, torch.bool)


def test_an_unknown_architecture():
    with pytest.raises(DictionaryError, match=r"'gated' \(known: .*crosslayer"):
        architecture("gated")
