"""Parts of the training loss that the dense reference does not single out."""

from dataclasses import replace

import pytest
import torch

import tiny
from isotrace.activations.harvest import mlp_activations
from isotrace.dictionaries.replacement import replaced_hidden
from isotrace.training.config import TrainingConfig
from isotrace.training.losses import free_running, reconstruction, variance

L = tiny.N_LAYERS
TRAINING = TrainingConfig(auxiliary=0.0, auxiliary_k=2, dtype="float64")


def inputs(d, tokens=30):
    return torch.randn(2, L, tokens, d, generator=torch.Generator().manual_seed(1))


def none_dead(dictionary):
    return torch.zeros(dictionary.config.n_layers, dictionary.config.n_features, dtype=torch.bool)


@pytest.mark.parametrize("rule", ["topk", "batchtopk", "relu", "jumprelu", "gated"])
def test_the_auxiliary_loss_reaches_dead_features_only(rotary64, rule):
    x, y = inputs(rotary64.d_model)
    dead = torch.zeros(L, 12, dtype=torch.bool)
    dead[0, 2], dead[2, 5:8] = True, True

    def gradients(auxiliary):
        dictionary = tiny.random_dictionary(rotary64, activation=rule, k=3 if "topk" in rule else None)
        dictionary.requires_grad_(True)
        reconstruction(dictionary, x, y, replace(TRAINING, auxiliary=auxiliary), dead).total.backward()
        return {name: p.grad for name, p in dictionary.named_parameters()}

    without, d = gradients(0.0), rotary64.d_model
    for name, gradient in gradients(0.5).items():
        kind, _, layer = name.partition(".")
        extra = gradient - without[name]
        if kind in ("b_dec", "rule"):
            assert float(extra.abs().max()) == 0, name
            continue
        alive = ~dead[int(layer)]
        per_feature = extra.T if kind == "W_enc" else extra
        assert float(per_feature[alive].abs().max()) < 1e-14
        if int(layer) != 1:
            assert float(per_feature[dead[int(layer)]].abs().max()) > 1e-8
        if kind == "W_dec":
            assert float(per_feature[:, d:].abs().sum()) < 1e-14, "only the decoder into its own layer"


def test_the_auxiliary_loss_does_not_see_the_scale_of_the_residual(rotary64):
    """It is relative: with y and everything that reconstructs it ten times as large it is the same."""
    dictionary, (x, y) = tiny.random_dictionary(rotary64), inputs(rotary64.d_model)
    dead = none_dead(dictionary)
    dead[:, :4] = True
    training = replace(TRAINING, auxiliary=1.0)
    before = reconstruction(dictionary, x, y, training, dead).parts["auxiliary"]
    for weight in [*dictionary.W_dec, *dictionary.b_dec]:
        weight.data *= 10
    torch.testing.assert_close(reconstruction(dictionary, x, 10 * y, training, dead).parts["auxiliary"], before)


def test_no_layer_drowns_another(rotary64):
    """The error of a layer counts relative to its variance: louder outputs, same loss."""
    dictionary, (x, y) = tiny.random_dictionary(rotary64, "transcoder"), inputs(rotary64.d_model)
    before = reconstruction(dictionary, x, y, TRAINING, none_dead(dictionary))
    for parameter in (dictionary.W_dec[1], dictionary.b_dec[1]):
        parameter.data *= 1e3
    y[1] *= 1e3
    after = reconstruction(dictionary, x, y, TRAINING, none_dead(dictionary))
    torch.testing.assert_close(after.total, before.total, rtol=1e-10, atol=0)
    torch.testing.assert_close(after.fve, before.fve, rtol=1e-10, atol=1e-10)
    doubled = reconstruction(dictionary, x, y, TRAINING, none_dead(dictionary), var=2 * variance(y))
    torch.testing.assert_close(2 * doubled.total, after.total, rtol=1e-10, atol=0)


def test_explained_variance_counts_all_prefixes_once(rotary64):
    """FVE and L0 are the whole dictionary's; the loss is the mean over prefixes, each a dictionary of its own."""
    prefixes, (x, y) = (3, 8, 12), inputs(rotary64.d_model)
    nested = tiny.random_dictionary(rotary64, activation="relu", k=None, prefixes=prefixes)
    plain = tiny.random_dictionary(rotary64, activation="relu", k=None)
    whole = reconstruction(plain, x, y, TRAINING, none_dead(plain))
    found = reconstruction(nested, x, y, TRAINING, none_dead(nested))
    torch.testing.assert_close(found.fve, whole.fve)
    torch.testing.assert_close(found.l0, whole.l0)
    losses = []
    for size in prefixes:
        cut = tiny.random_dictionary(rotary64, activation="relu", k=None)
        for weight in cut.W_dec:
            weight.data[size:] = 0
        losses.append(reconstruction(cut, x, y, TRAINING, none_dead(cut)).total)
    torch.testing.assert_close(found.total, torch.stack(losses).mean(), rtol=1e-12, atol=0)
    assert len({round(float(loss), 6) for loss in losses}) == 3


@pytest.mark.parametrize("rule", ["topk", "relu"])
def test_bfloat16_products_stay_close(rotary, rule):
    """The precision of the products changes the loss by rounding only, and weights keep float32 gradients."""
    x, y = inputs(rotary.d_model)
    losses = []
    for dtype in ("float32", "bfloat16"):
        dictionary = tiny.random_dictionary(rotary, activation=rule, k=3 if rule == "topk" else None).requires_grad_(
            True
        )
        out = reconstruction(dictionary, x, y, replace(TRAINING, dtype=dtype), none_dead(dictionary), penalty=0.1)
        out.total.backward()
        assert {p.grad.dtype for p in dictionary.parameters()} == {torch.float32}
        losses.append(float(out.total.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_free_running_is_divergence_and_drift(rotary64):
    dictionary, batch = tiny.random_dictionary(rotary64), rotary64.tokenize(["CC(=O)N", "OCCNC=O"])
    final = mlp_activations(rotary64, batch)[2]
    replaced = replaced_hidden(rotary64, dictionary, batch, "free_running")
    drift = float(((replaced - final) ** 2).mean() / final.var((0, 1), correction=0).mean())
    chosen = torch.zeros_like(batch.mask)
    assert float(free_running(rotary64, dictionary, batch, chosen, final)) == pytest.approx(drift, rel=1e-9)
    chosen[0, 2], chosen[1, 4] = True, True
    clean, other = (rotary64.head(hidden)[chosen].double().softmax(-1) for hidden in (final, replaced))
    divergence = float((clean * (clean.log() - other.log())).sum(-1).mean())
    assert divergence > 1e-3
    found = float(free_running(rotary64, dictionary, batch, chosen, final))
    assert found == pytest.approx(drift + divergence, rel=1e-5)  # logits are compared in float32


def test_an_exact_dictionary_has_nothing_to_learn(relu_subject):
    dictionary, batch = tiny.exact_dictionary(relu_subject), relu_subject.tokenize(["CC(=O)N", "OCCNC=O"])
    x, y, final = mlp_activations(relu_subject, batch)
    training = replace(TRAINING, dtype="float32")
    out = reconstruction(dictionary, x.flatten(1, 2), y.flatten(1, 2), training, none_dead(dictionary))
    assert float(out.total) == pytest.approx(0, abs=1e-8)
    assert out.fve.tolist() == pytest.approx([1] * L)
    assert float(free_running(relu_subject, dictionary, batch, batch.mask, final)) == pytest.approx(0, abs=1e-6)
