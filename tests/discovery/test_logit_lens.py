"""Direct logit attribution and the logit lens, against sums and against models computed by hand."""

from dataclasses import replace

import pytest
import torch

import tiny
from isotrace.base.errors import InputError, SubjectError
from isotrace.dictionaries.features import Features
from isotrace.discovery.methods import Problem, method_of
from isotrace.discovery.methods.logit_lens import ResidualPath, direct_contributions, logit_lens
from isotrace.interventions import Attentions, Heads, MLPs, Neurons, Residuals, zero_values

dla = method_of("direct_logit_attribution")


def contrast(subject, position=2):
    """Logit of C minus the mean logit, where the token at `position` is predicted."""
    place = subject.reading_position(position)

    def metric(batch, final):
        logits = subject.head(final[:, place])
        return logits[:, subject.token_id("C")] - logits.mean(-1)

    return metric


def log_probability(subject):
    return lambda batch, final: subject.head(final[:, 2]).log_softmax(-1)[:, subject.token_id("C")]


def problem(subject, mediator, texts=(tiny.SMILES, "CCO")):
    batch = subject.tokenize([*texts])
    return Problem(subject, mediator, batch, contrast(subject), zero_values(subject, mediator))


@pytest.mark.every_family
def test_contributions_add_up(subject64):
    """On a padded batch; the constant comes from a run with nothing written, not from the difference."""
    batch = subject64.tokenize([tiny.SMILES, "CCO"])
    found = direct_contributions(subject64, batch, contrast(subject64))
    expected = contrast(subject64)(batch, subject64.hidden(batch.ids, batch.mask))
    parts = torch.cat([p.flatten(1) for p in (*found.embeddings, *found.heads, *found.cross, *found.mlps)], 1)
    assert tiny.relative(parts.sum(1) + found.constant, expected) < 1e-9
    assert found.error().abs().max() < 1e-9 * parts.abs().sum(1).max()
    assert (parts.abs().sum(1) > 1e-3).all()
    decoder = subject64.stack_sizes[0] if subject64.objective == "denoising" else 0
    assert len(found.cross) == (subject64.stack_sizes[-1] if decoder else 0)
    for layer, (heads, mlp) in enumerate(zip(found.heads, found.mlps, strict=True)):
        assert bool((heads == 0).all()) == bool((mlp == 0).all()) == (layer < decoder)


def test_contributions_to_a_probe(subject64):
    """A metric that reads no head: the mean over real tokens, through a linear map."""
    batch = subject64.tokenize([tiny.SMILES, "CCO"])
    target = tiny.make_target("probe", subject64, batch)
    found = direct_contributions(subject64, batch, lambda batch, final: target.value(subject64, batch, final))
    assert tiny.relative(found.metric, target.value(subject64, batch, subject64.run(batch).final)) < 1e-12
    assert found.error().abs().max() < 1e-9 * found.mlps[0].abs().max()


@pytest.mark.every_family
def test_score_is_the_change_of_the_held_subject(subject64):
    """Taking away one head's output, all else held, moves the metric by just its score."""
    given = problem(subject64, Heads())
    scores = dla(given).over_positions()
    path = ResidualPath(subject64, given.batch, given.metric)
    layer, head = subject64.n_layers - 1, 1
    width = subject64.d_head(layer)

    def without(name, value):
        if name == f"layers.{layer}.head_out":
            value = value.clone()
            value[..., head * width : (head + 1) * width] = 0
        return value

    with torch.no_grad():
        fall = path.run() - path.run(without)
    assert torch.allclose(path.run().detach(), path.value, atol=1e-10)
    assert tiny.relative(scores[layer][:, head], fall) < 1e-8
    assert fall.abs().min() > 1e-6


def test_last_writer_of_a_pre_norm_model_by_hand(rotary64):
    """ESM: what the last MLP writes, divided by σ of the final norm and read by the head with its gate."""
    given = problem(rotary64, MLPs(), [tiny.SMILES])
    captured = rotary64.run(given.batch, capture=["layers.2.mlp_out", "layers.2.resid_post"]).captured
    norm, stream = rotary64.module("esm.encoder.emb_layer_norm_after"), captured["layers.2.resid_post"][0, 2]
    sigma = (stream.var(unbiased=False) + norm.eps).sqrt()
    written = captured["layers.2.mlp_out"][0, 2]
    final = (stream - stream.mean()) / sigma * norm.weight + norm.bias
    through = (written - written.mean()) / sigma * norm.weight
    head = rotary64.model.lm_head
    z = head.dense(final)
    gelu = z * 0.5 * (1 + torch.erf(z / 2**0.5))
    gated = through @ head.dense.weight.T * (gelu / z)
    sigma = (gelu.var(unbiased=False) + head.layer_norm.eps).sqrt()
    logits = ((gated - gated.mean()) / sigma * head.layer_norm.weight) @ head.decoder.weight.T
    expected = logits[rotary64.token_id("C")] - logits.mean()
    assert float(dla(given).values[2][0].sum()) == pytest.approx(float(expected), rel=1e-9)


def test_mediators_agree(subject64):
    """Heads add up to the attention they make, neurons to their MLP: all but the bias, which the reference takes."""
    biases = [subject64.hookpoint(f"layers.{i}.attn_out")[0].bias for i in range(subject64.n_layers)]
    whole = replace(problem(subject64, Attentions()), reference=tuple(bias[None] for bias in biases))
    for one, other in zip(dla(problem(subject64, Heads())).values, dla(whole).values, strict=True):
        assert torch.allclose(one.sum(-1), other[..., 0], atol=1e-10)
    biases = [subject64.neuron_writes(i)[1] for i in range(subject64.n_layers)]
    whole = replace(problem(subject64, MLPs()), reference=tuple(bias[None] for bias in biases))
    for one, other in zip(dla(problem(subject64, Neurons())).values, dla(whole).values, strict=True):
        assert torch.allclose(one.sum(-1), other[..., 0], atol=1e-10)


@torch.no_grad()
def test_residuals_bring_all_that_stands_before_them(rotary64):
    """What the stream behind the last layer of a pre-norm model brings is everything but the biases behind it."""
    given = problem(rotary64, Residuals())
    path = ResidualPath(rotary64, given.batch, given.metric)
    with path.held():
        final = rotary64.module("esm.encoder.emb_layer_norm_after")(torch.zeros_like(path.final))
        constant = given.metric(given.batch, final)
    assert torch.allclose(dla(given).over_positions()[-1][:, 0] + constant, path.value, atol=1e-9)


def test_features_of_an_exact_dictionary_are_its_neurons(relu_subject):
    dictionary = tiny.exact_dictionary(relu_subject)
    features = dla(problem(relu_subject, Features(dictionary))).values
    neurons = dla(problem(relu_subject, Neurons())).values
    for one, other in zip(features, neurons, strict=True):
        assert torch.allclose(one, other, atol=1e-4 * float(other.abs().max()))


def test_features_that_write_to_several_layers(subject64):
    """A cross-layer feature's score is the sum over the layers it writes to."""
    dictionary = tiny.random_dictionary(subject64)
    given = problem(subject64, Features(dictionary))
    clean = given.components.record(subject64, given.batch)[0]
    mlp = problem(subject64, MLPs())
    for layer, scores in enumerate(dla(given).values):
        expected = torch.zeros_like(scores)
        for slot, target in enumerate(dictionary.config.targets(layer)):
            width = dictionary.config.d_out
            rows = dictionary.W_dec[layer][:, slot * width : (slot + 1) * width]
            for feature in range(dictionary.config.n_features):
                written = clean[layer][..., feature, :] * rows[feature]
                outputs = mlp.components.record(subject64, mlp.batch)[0]
                reference = tuple(o - written[..., None, :] if i == target else o for i, o in enumerate(outputs))
                expected[..., feature] += dla(replace(mlp, reference=reference)).values[target][..., 0]
        assert torch.allclose(scores, expected, atol=1e-9)


def test_refusals(rotary):
    given = problem(rotary, Heads())
    with pytest.raises(SubjectError, match="not affine in the logits"):
        dla(replace(given, metric=log_probability(rotary)))
    with pytest.raises(SubjectError, match="not affine"):
        direct_contributions(rotary, given.batch, log_probability(rotary))
    dictionary = tiny.random_dictionary(rotary)
    mediator = Features(dictionary, errors="drop")
    with pytest.raises(SubjectError, match="errors='keep'"):
        dla(Problem(rotary, mediator, given.batch, given.metric, zero_values(rotary, mediator)))


@pytest.mark.every_family
def test_lens_ends_in_the_prediction(variant, subject):
    batch = subject.tokenize([tiny.SMILES, "CCO"])
    lens = logit_lens(subject, batch, [1, 3])
    assert torch.allclose(lens.logits[-1], subject.run(batch).logits[:, [1, 3]], atol=1e-5)
    assert lens.logits.shape[:3] == (subject.stack_sizes[-1] + 1, 2, 2)
    assert lens.layers == tuple(range(subject.n_layers - subject.stack_sizes[-1] - 1, subject.n_layers))
    assert not torch.allclose(lens.logits[0], lens.logits[-1], atol=1e-2)
    post_norm = variant in ("bert", "roberta", "albert", "deberta-v2", "bart")
    assert lens.outer_norm == (not post_norm)


def test_lens_by_hand(rotary):
    """ESM's final norm and head on the stream behind the first layer."""
    batch = rotary.tokenize([tiny.SMILES])
    stream = rotary.run(batch, capture=["layers.0.resid_post"]).captured["layers.0.resid_post"]
    expected = rotary.model.lm_head(rotary.module("esm.encoder.emb_layer_norm_after")(stream[:, 1:3]))
    assert torch.allclose(logit_lens(rotary, batch, [1, 2]).logits[1], expected, atol=1e-5)


def test_lens_refuses(rotary, tmp_path):
    batch = rotary.tokenize([tiny.SMILES])
    with pytest.raises(InputError, match="positions 0 to"):
        logit_lens(rotary, batch, [batch.ids.shape[1]])
    folder = tiny.save_subject(tiny.tiny_model("bert").base_model, tmp_path)
    headless = tiny.load_tiny(folder)
    with pytest.raises(SubjectError, match="no language-model head"):
        logit_lens(headless, headless.tokenize(["CCO"]), [1])
