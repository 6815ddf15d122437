"""What architectures share: shapes, decoders, initial weights, normalisation, and configs that cannot be."""

import pytest
import torch
from jaxtyping import Float, Int64, jaxtyped

import tiny
from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.build import build, configure
from isotrace.dictionaries.registry import ARCHITECTURES

L = tiny.N_LAYERS
NAMES = [("sae", {}), ("transcoder", {}), ("skip_transcoder", {})]
SHAPES = [*NAMES, *(("crosslayer", {"window": w}) for w in (1, 2, L)), ("crosslayer", {"window": 2, "skip": True})]


@pytest.fixture(params=SHAPES, ids=str)
def dictionary(request, rotary64):
    name, given = request.param
    return tiny.random_dictionary(rotary64, name, **given)


def inputs(d, tokens=11):
    return torch.randn(L, tokens, d, generator=torch.Generator().manual_seed(1))


def test_the_decoders_agree(dictionary):
    """forward, decode, write_vectors and decoder say the same."""
    config, x = dictionary.config, inputs(dictionary.config.d_in)
    sparse = [dictionary.encode(layer, x[layer]) for layer in range(L)]
    dense = {layer: s.dense(config.n_features) for layer, s in enumerate(sparse)}
    whole = dictionary(x)
    for target in range(L):
        torch.testing.assert_close(dictionary.decode(target, dense, x[target]), whole[target], rtol=1e-12, atol=1e-12)
    total = dictionary.biases.expand(-1, x.shape[1], -1).clone()
    for layer in range(L if config.skip else 0):
        total[layer] += x[layer] @ dictionary.W_skip[layer]
    for source, s in enumerate(sparse):
        rows = dictionary.write_vectors(source, s.indices)
        assert [*config.targets(source)] == [*range(source, min(source + config.window, L))]
        assert rows.shape[-2] == len(config.targets(source))
        for slot, target in enumerate(config.targets(source)):
            torch.testing.assert_close(rows[..., slot, :], dictionary.decoder(source, target)[s.indices])
            total[target] += (s.values[..., None] * rows[..., slot, :]).sum(-2)
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)


def test_decoder_norms_belong_to_features(dictionary):
    norms = dictionary.decoder_norms()
    assert norms.shape == (L, dictionary.config.n_features)
    for source in range(L):
        parts = [dictionary.decoder(source, t).square().sum(-1) for t in dictionary.config.targets(source)]
        torch.testing.assert_close(norms[source], torch.stack(parts).sum(0).sqrt())


def test_shapes_are_as_documented(dictionary):
    x = inputs(dictionary.config.d_in)
    with jaxtyped("context"):  # one binding of every name: a size that differs anywhere fails
        sparse = dictionary.encode(0, x[0])
        assert isinstance(x, Float[torch.Tensor, "layers tokens d"])
        assert isinstance(dictionary(x), Float[torch.Tensor, "layers tokens d"])
        assert isinstance(sparse.indices, Int64[torch.Tensor, "tokens k"])
        assert isinstance(sparse.values, Float[torch.Tensor, "tokens k"])
        assert isinstance(dictionary.preactivations(0, x[0]), Float[torch.Tensor, "tokens features"])
        assert isinstance(dictionary.mean_activation, Float[torch.Tensor, "layers features"])
        assert isinstance(dictionary.density, Float[torch.Tensor, "layers features"])
        assert isinstance(dictionary.W_enc[0], Float[torch.Tensor, "d features"])
        assert isinstance(dictionary.biases, Float[torch.Tensor, "layers 1 d"])
    assert all(w.T.is_contiguous() for w in dictionary.W_enc), "the weights of a feature lie together"


@pytest.mark.parametrize(("name", "given"), SHAPES, ids=str)
def test_initial_weights(rotary, name, given):
    config = configure(rotary, name, n_features=12, k=3, **given)
    dictionary, again, other = (build(config, seed) for seed in (5, 5, 6))
    for key, value in dictionary.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    for layer, (encoder, decoder) in enumerate(zip(dictionary.W_enc, dictionary.W_dec, strict=True)):
        torch.testing.assert_close(encoder.norm(dim=0), torch.ones(12))
        assert encoder.T.is_contiguous()
        assert torch.equal(decoder, encoder.T if name == "sae" else torch.zeros_like(decoder))
        assert not torch.equal(encoder, other.W_enc[layer])
    assert not any(bool(w.any()) for w in dictionary.W_skip)


@pytest.mark.parametrize("rule", ["topk", "batchtopk", "relu", "jumprelu", "gated"])
@pytest.mark.parametrize(("name", "given"), SHAPES, ids=str)
def test_folding_keeps_the_function_of_raw_activations(rotary64, name, given, rule):
    k = 3 if "topk" in rule else None
    dictionary = tiny.random_dictionary(rotary64, name, activation=rule, k=k, **given)
    generator = torch.Generator().manual_seed(1)
    x = 3 + 5 * torch.randn(L, 40, rotary64.d_model, generator=generator)
    mean_in, mean_out = torch.randn(2, L, rotary64.d_model, generator=generator)
    scale_in, scale_out = 0.3 + torch.rand(2, L, generator=generator) * 4
    normalised = (x - mean_in[:, None]) / scale_in[:, None, None]
    expected = dictionary(normalised) * scale_out[:, None, None] + mean_out[:, None]
    active = [dictionary.encode(i, normalised[i]).dense(12) for i in range(L)]
    assert float((dictionary(x) - expected).abs().max()) > 1
    dictionary.fold(mean_in, scale_in, mean_out, scale_out)
    torch.testing.assert_close(dictionary(x), expected, rtol=1e-10, atol=1e-10)
    for layer, before in enumerate(active):
        assert int((before > 0).sum()) > 0
        torch.testing.assert_close(dictionary.encode(layer, x[layer]).dense(12), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "given"), SHAPES, ids=str)
def test_standardised_tokens(rotary64, name, given):
    """Scaling and shifting a token changes no activation, and scales and shifts what is written; other tokens are
    encoded as an ordinary dictionary encodes their standardised values."""
    dictionary = tiny.random_dictionary(rotary64, name, token_normalization="standardize", **given)
    plain = tiny.random_dictionary(rotary64, name, **given)
    x = 2 + 3 * inputs(rotary64.d_model)
    scale = 5 + torch.arange(11.0)[:, None]
    seen = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
    for layer in range(L):
        before, after, same = (
            d.encode(layer, t[layer]).dense(12)
            for d, t in ((dictionary, x), (dictionary, scale * x + 7), (plain, seen))
        )
        torch.testing.assert_close(before, same, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)  # the guard against division by zero
        assert float(before.max()) > 0.1
    torch.testing.assert_close(
        dictionary(x), plain(seen) * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(dictionary(scale * x + 7), scale * dictionary(x) + 7, rtol=1e-3, atol=1e-3)
    constant = torch.full_like(x, 4.0)
    torch.testing.assert_close(dictionary(constant), constant, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("sae", {"n_features": 12}, "topk needs k: say how many"),
        ("sae", {"n_features": 12, "activation": "batchtopk"}, "batchtopk needs k"),
        ("sae", {"n_features": 12, "k": 3, "activation": "jumprelu"}, "jumprelu takes no k: leave it out"),
        ("sae", {"n_features": 12, "k": 3, "activation": "top"}, "no sparsity rule 'top': give one of batchtopk"),
        ("saw", {"n_features": 12, "k": 3}, "no architecture 'saw': give one of crosslayer"),
        ("sae", {"k": 3}, "n_features: "),
        ("sae", {"n_features": 12, "k": 13}, "k 13 is larger than n_features 12"),
        ("sae", {"n_features": 12, "k": 0}, "k: .*greater than 0"),
        ("sae", {"n_features": -1, "k": 3}, "n_features: .*greater than 0"),
        ("sae", {"n_features": 12, "k": 3, "width": 5}, "width: Unexpected keyword"),
        ("crosslayer", {"n_features": 12, "k": 3, "window": 4}, "window 4 is larger than the 3 layers"),
        (
            "crosslayer",
            {"n_features": 12, "k": 3, "layers": (0, 2), "window": 3},
            "window 3 is larger than the 2 layers",
        ),
        ("sae", {"n_features": 12, "k": 3, "prefixes": (8, 4, 12)}, "prefixes must increase and end with n_features"),
        ("sae", {"n_features": 12, "k": 3, "prefixes": (4, 8)}, "prefixes must increase and end with n_features"),
        ("sae", {"n_features": 12, "k": 3, "prefixes": (4, 4, 12)}, "prefixes must increase"),
        ("sae", {"n_features": 12, "k": 3, "layers": (2, 1)}, "layers must be increasing"),
        ("sae", {"n_features": 12, "k": 3, "layers": ()}, "at least one"),
        ("sae", {"n_features": 12, "k": 3, "layers": (1, 3)}, r"layers \(1, 3\): .* has layers 0 to 2"),
        ("sae", {"n_features": 12, "k": 3, "layers": (-1,)}, "layers.0: .*greater than or equal to 0"),
        ("sae", {"n_features": 12, "k": 3, "hookpoint_in": "mlp_in"}, "hookpoint 'mlp_in' must have the form layers"),
        (
            "sae",
            {"n_features": 12, "k": 3, "hookpoint_in": "layers.{}.mlp_in"},
            "writes where it reads: use a transcoder",
        ),
        ("sae", {"n_features": 12, "k": 3, "window": 2}, "has window 1 and no skip: use crosslayer"),
        ("transcoder", {"n_features": 12, "k": 3, "window": 2}, "has window 1 and no skip: use crosslayer"),
        ("transcoder", {"n_features": 12, "k": 3, "skip": True}, "use crosslayer or skip_transcoder"),
        ("skip_transcoder", {"n_features": 12, "k": 3, "skip": False}, "has window 1 and skip true"),
        (
            "transcoder",
            {"n_features": 12, "k": 3, "d_out": 8, "token_normalization": "standardize"},
            "needs d_in = d_out",
        ),
        ("sae", {"n_features": 12, "k": 3, "token_normalization": "layer"}, "token_normalization: "),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(rotary, name, given, message):
    with pytest.raises(DictionaryError, match=message) as caught:
        configure(rotary, name, **given)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_usual_settings(rotary):
    found = {
        name: configure(rotary, name, n_features=12, k=3) for name in ARCHITECTURES if not ARCHITECTURES[name].fitted
    }
    assert {c.layers for c in found.values()} == {(0, 1, 2)}
    assert {name: c.window for name, c in found.items() if c.window > 1} == {"crosslayer": L}
    assert [name for name, c in found.items() if c.skip] == ["skip_transcoder"]
    assert found["sae"].reads == found["sae"].writes == [f"layers.{i}.mlp_out" for i in range(L)]
    for name in ("transcoder", "skip_transcoder", "crosslayer"):
        assert found[name].reads == [f"layers.{i}.mlp_in" for i in range(L)]
        assert found[name].writes == [f"layers.{i}.mlp_out" for i in range(L)]
    some = configure(rotary, "crosslayer", n_features=12, k=3, layers=(0, 2))
    assert (some.window, some.writes) == (2, ["layers.0.mlp_out", "layers.2.mlp_out"])
