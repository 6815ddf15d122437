"""The replacement model against plain forward hooks, for dictionaries of any site and any subset of layers."""

from contextlib import ExitStack

import pytest
import torch

import tiny
from isotrace.activations.harvest import Corpus, activations
from isotrace.dictionaries.build import build, configure
from isotrace.dictionaries.features import Features
from isotrace.dictionaries.replacement import ablated_hidden, replaced_hidden
from isotrace.evaluation.fidelity import MODES, evaluate, mean_activations
from isotrace.interventions import Add, Apply, Intervention, MLPInputs, MLPs, Plan, Scale, Select, Set

SITES = ("mlp_in", "mlp_out", "resid_pre", "resid_post")
MOLECULES = ["CC(=O)N", "OCCN"]
CASES = [
    ("sae", {"hookpoint_in": "layers.{}.mlp_out", "hookpoint_out": "layers.{}.mlp_out"}),
    ("sae", {"hookpoint_in": "layers.{}.resid_post", "hookpoint_out": "layers.{}.resid_post"}),
    ("transcoder", {}),
    ("skip_transcoder", {}),
    ("crosslayer", {}),
    ("transcoder", {"hookpoint_in": "layers.{}.resid_pre", "hookpoint_out": "layers.{}.mlp_out"}),
    ("transcoder", {"token_normalization": "standardize"}),
]
LAYERS = [(0, 1, 2), (1,), (0, 2)]


def hooked_hidden(subject, dictionary, batch, clean=None):
    """The same by hooks of the test's own; `clean` maps a hookpoint to what encoders read instead of the stream."""
    config, read, seen = dictionary.config, {}, {}

    def value(layer, x):
        x = x if clean is None else clean[config.reads[layer]]
        seen[layer] = dictionary.encode(layer, x).dense(config.n_features)
        total = dictionary.b_dec[layer]
        for source in range(max(0, layer - config.window + 1), layer + 1):
            slot = slice((layer - source) * config.d_out, (layer - source + 1) * config.d_out)
            total = total + seen[source] @ dictionary.W_dec[source][:, slot]
        if config.skip:
            total = total + x @ dictionary.W_skip[layer]
        if config.token_normalization == "standardize":
            total = total * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True)
        return total

    with ExitStack() as stack:
        for layer, (reads, writes) in enumerate(zip(config.reads, config.writes, strict=True)):
            module, side = subject.hookpoint(reads)
            if side == "input":
                hook = module.register_forward_pre_hook(lambda _, args, n=layer: read.__setitem__(n, args[0]))
            else:
                hook = module.register_forward_hook(lambda _, args, out, n=layer: read.__setitem__(n, out))
            stack.callback(hook.remove)
            module, side = subject.hookpoint(writes)
            assert side == "output"
            hook = module.register_forward_hook(lambda _, args, out, n=layer: value(n, read[n]))
            stack.callback(hook.remove)
        return subject.hidden(batch.ids, batch.mask)


@pytest.mark.parametrize("layers", LAYERS, ids=str)
@pytest.mark.parametrize(("name", "given"), CASES, ids=str)
def test_it_is_what_plain_hooks_compute(rotary64, name, given, layers):
    dictionary = tiny.random_dictionary(rotary64, name, layers=layers, **given)
    batch = rotary64.tokenize(MOLECULES)
    clean = rotary64.run(batch, capture=dictionary.config.reads)
    free = replaced_hidden(rotary64, dictionary, batch, "free_running")
    forced = replaced_hidden(rotary64, dictionary, batch, "teacher_forced", [*clean.captured.values()])
    torch.testing.assert_close(free, hooked_hidden(rotary64, dictionary, batch), rtol=1e-11, atol=1e-11)
    expected = hooked_hidden(rotary64, dictionary, batch, clean.captured)
    torch.testing.assert_close(forced, expected, rtol=1e-11, atol=1e-11)
    assert float((free - clean.final).abs().max()) > 1e-3
    assert (float((free - forced).abs().max()) > 1e-6) == (len(layers) > 1), "one layer alone sees no drift"


def test_one_set_of_arguments_per_mode(rotary):
    dictionary, batch = tiny.random_dictionary(rotary), rotary.tokenize(["CC"])
    x = activations(rotary, batch, dictionary.config.reads)
    for mode, clean in (("teacher_forced", None), ("free_running", list(x))):
        with pytest.raises(ValueError, match="teacher_forced needs clean activations"):
            replaced_hidden(rotary, dictionary, batch, mode, clean)


@pytest.mark.parametrize("site", ["mlp_out", "resid_post"])
def test_a_subset_of_layers_leaves_the_others_alone(rotary64, site):
    """Below the replaced layer nothing changes; the MLPs above are the subject's own, on what reaches them."""
    given = {"hookpoint_in": f"layers.{{}}.{site}", "hookpoint_out": f"layers.{{}}.{site}"}
    dictionary = tiny.random_dictionary(rotary64, "sae", layers=(1,), **given)
    batch = rotary64.tokenize(MOLECULES)
    before = rotary64.run(batch, capture=[f"layers.{n}.{s}" for n in range(3) for s in SITES]).captured
    captured, handles = {}, []
    for name in before:
        module, side = rotary64.hookpoint(name)
        if side == "input":
            hook = lambda _, args, name=name: captured.__setitem__(name, args[0])  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook))
    mlps = {
        n: rotary64.module(rotary64.family.mlp_out, n).register_forward_hook(
            lambda _, args, out, n=n: captured.__setitem__(f"layers.{n}.mlp_out", out)
        )
        for n in (0, 2)
    }
    replaced_hidden(rotary64, dictionary, batch, "free_running")
    for handle in [*handles, *mlps.values()]:
        handle.remove()
    for name in ("layers.0.mlp_in", "layers.0.mlp_out", "layers.1.mlp_in"):
        assert torch.equal(captured[name], before[name]), name
    assert float((captured["layers.2.mlp_in"] - before["layers.2.mlp_in"]).abs().max()) > 1e-3
    assert float((captured["layers.2.mlp_out"] - before["layers.2.mlp_out"]).abs().max()) > 1e-6


def identity(subject, site, layers):
    """W_enc = [Q, −Q] of an orthogonal Q, W_dec its transpose, every feature allowed: x = ReLU(xQ)Qᵀ − ReLU(−xQ)Qᵀ."""
    d = subject.d_model
    hookpoint = f"layers.{{}}.{site}"
    config = configure(
        subject, "sae", n_features=2 * d, k=2 * d, layers=layers, hookpoint_in=hookpoint, hookpoint_out=hookpoint
    )
    dictionary = build(config, seed=0).requires_grad_(False)
    q = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(2))).Q
    for encoder, decoder in zip(dictionary.W_enc, dictionary.W_dec, strict=True):
        encoder.copy_(torch.cat([q, -q], 1))
        decoder.copy_(encoder.T)
    return dictionary


@pytest.mark.parametrize("layers", LAYERS, ids=str)
@pytest.mark.parametrize("site", ["mlp_out", "resid_post"])
def test_an_identity_recovers_everything(relu_subject, site, layers):
    dictionary = identity(relu_subject, site, layers)
    batch = relu_subject.tokenize(MOLECULES)
    expected = relu_subject.run(batch).final
    hidden = replaced_hidden(relu_subject, dictionary, batch, "free_running")
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
    found = evaluate(relu_subject, dictionary, tiny.MOLECULES * 2, mask_rate=0.3, n_bootstrap=20)
    for mode in MODES:
        assert found[mode]["loss_recovered"] == pytest.approx(1, abs=1e-3)
        assert found[mode]["kl"] == pytest.approx(0, abs=1e-5)
        assert found[mode]["top1_agreement"] == 1
    assert abs(found["ablated"]["cross_entropy"] - found["clean"]["cross_entropy"]) > 0.01, "there is a loss to recover"
    assert found["fve"] == pytest.approx([1] * len(layers), abs=1e-5)
    assert found["l0"] == pytest.approx(relu_subject.d_model, rel=1e-3), "one of q and −q"


def test_ablation_is_of_what_the_dictionary_writes_only(rotary64):
    dictionary = tiny.random_dictionary(rotary64, "transcoder", layers=(0, 2))
    batch, corpus = rotary64.tokenize(MOLECULES), Corpus.of(rotary64, tiny.MOLECULES)
    mean = mean_activations(rotary64, corpus, dictionary.config.writes, 0)
    rows = torch.cat(
        [activations(rotary64, rotary64.tokenize([m]), dictionary.config.writes) for m in tiny.MOLECULES], 1
    )
    torch.testing.assert_close(mean, rows.mean(1), rtol=1e-10, atol=1e-12)
    place = {0: 0, 2: 1}
    edited = rotary64.run(batch, plan=Plan((Intervention(MLPs(), Apply(lambda n, _: mean[place[n]]), Select((0, 2))),)))
    hidden = ablated_hidden(rotary64, dictionary, batch, mean)
    torch.testing.assert_close(hidden, edited.final, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_where_one_layer_is_edited_the_features_of_the_others_still_speak(subject):
    alone, batch = Features(tiny.random_dictionary(subject), errors="drop"), subject.tokenize(["CCO", "C"])

    def second(layer, values):
        return torch.zeros_like(values) if layer == 1 else values

    edits = (Intervention(alone, Set(0.0), Select(layers=(1,))), Intervention(alone, Apply(second)))
    one, other = (subject.run(batch, plan=Plan.of(edit)).final[batch.mask] for edit in edits)
    torch.testing.assert_close(one, other)
    whole = subject.run(batch, plan=Plan.of(Intervention(alone, Scale(1.0)))).final[batch.mask]
    assert tiny.relative(one, whole) > 1e-3


@torch.no_grad()
def test_features_are_encoded_anew_where_what_they_read_was_changed(subject):
    """An outer context silences them, one between moves what they read: the inner one meets those of what flows."""
    features, batch, seen = Features(tiny.random_dictionary(subject)), subject.tokenize(["CCO", "C"]), {}

    def see(layer, values):
        seen[layer] = values[..., 0]
        return values

    moved = Intervention(MLPInputs(), Add(0.5))
    plan = Plan.of(Intervention(features, Set(0.0)), moved, Intervention(features, Apply(see)))
    read = subject.run(batch, plan=plan, capture=["layers.0.mlp_in"]).captured["layers.0.mlp_in"]
    assert bool(seen[0].any())
    torch.testing.assert_close(seen[0], features.encode(0, read))
    subject.run(batch, plan=Plan.of(Intervention(features, Set(0.0)), Intervention(features, Apply(see))))
    assert not seen[0].any(), "nothing was moved: the inner one meets what the outer one has made"
