"""Hookpoints are what a plain hook on the transformers module sees, and edits reach everything behind them."""

import pytest
import torch

import tiny
from isotrace.errors import SubjectError
from isotrace.subjects.subject import forwards_replaced, hookpoints_edited

KINDS = ("resid_pre", "attn_out", "mlp_in", "neuron", "mlp_out", "resid_post")


def block(subject, layer):
    base = subject.model.bert if subject.family.model_type == "bert" else subject.model.esm
    return base.encoder.layer[layer]


def module(subject, layer, kind):
    """(module, True if the hookpoint is its input), written out by hand."""
    one = block(subject, layer)
    return {
        "resid_pre": (one, True),
        "attn_out": (one.attention.output.dense, False),
        "mlp_in": (one.intermediate.dense, True),
        "neuron": (one.output.dense, True),
        "mlp_out": (one.output.dense, False),
        "resid_post": (one, False),
    }[kind]


@pytest.fixture
def batch(subject):
    return subject.tokenize(["CCO", "c1cc[nH]c1C"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, tiny.N_LAYERS - 1])
def test_a_capture_is_what_a_plain_hook_sees(subject, batch, layer, kind):
    seen, (found, is_input) = [], module(subject, layer, kind)
    if is_input:
        handle = found.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    else:
        handle = found.register_forward_hook(lambda _, args, output: seen.append(output.clone()))
    subject.model(input_ids=batch.ids, attention_mask=batch.mask.long())
    handle.remove()
    captured = subject.run(batch, capture=[f"layers.{layer}.{kind}"]).captured
    assert torch.equal(captured[f"layers.{layer}.{kind}"], seen[0])


def test_the_stream_is_what_its_parts_add_up_to(subject, batch):
    names = [f"layers.1.{kind}" for kind in KINDS]
    x = [subject.run(batch, capture=names).captured[name] for name in names]
    pre, attention, mlp_in, neuron, mlp_out, post = x
    assert tiny.relative(mlp_out, block(subject, 1).output.dense(neuron)) < 1e-6
    if subject.family.model_type == "bert":  # norms stand on the stream
        middle = block(subject, 1).attention.output.LayerNorm(pre + attention)
        assert tiny.relative(mlp_in, middle) < 1e-6
        assert tiny.relative(post, block(subject, 1).output.LayerNorm(middle + mlp_out)) < 1e-6
    else:
        assert tiny.relative(mlp_in, block(subject, 1).LayerNorm(pre + attention)) < 1e-6
        assert tiny.relative(post, pre + attention + mlp_out) < 1e-6


def test_a_block_ends_where_the_next_begins(subject, batch):
    captured = subject.run(batch, capture=["layers.0.resid_post", "layers.1.resid_pre"]).captured
    assert torch.equal(captured["layers.0.resid_post"], captured["layers.1.resid_pre"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_equals_replacing_the_forward(subject, batch, kind):
    """The same change made in the module's own forward gives the same logits."""
    found, is_input = module(subject, 1, kind)
    own = found.forward
    change = lambda x: 0.5 * x + 0.3  # noqa: E731
    if is_input:
        replaced = lambda x, *args, **kwargs: own(change(x), *args, **kwargs)  # noqa: E731
    else:
        replaced = lambda *args, **kwargs: change(own(*args, **kwargs))  # noqa: E731
    clean = subject.run(batch).logits
    with forwards_replaced({found: replaced}):
        expected = subject.run(batch).logits
    with hookpoints_edited(subject, {f"layers.1.{kind}": change}):
        edited = subject.run(batch, capture=[f"layers.1.{kind}"])
    assert torch.equal(edited.logits, expected)
    assert float((edited.logits - clean).abs().max()) > 1e-3
    before = subject.run(batch, capture=[f"layers.1.{kind}"])
    assert torch.equal(edited.captured[f"layers.1.{kind}"], change(before.captured[f"layers.1.{kind}"]))
    assert torch.equal(before.logits, clean), "no hook is left behind"


@pytest.mark.parametrize("kind", KINDS)
def test_edits_are_differentiable(subject64, kind):
    """The gradient is that of the same change written into the module's own forward."""
    batch, (found, is_input) = subject64.tokenize(["CCO"]), module(subject64, 1, kind)
    own, scale = found.forward, torch.ones((), requires_grad=True)
    if is_input:
        replaced = lambda x, *args, **kwargs: own(scale * x, *args, **kwargs)  # noqa: E731
    else:
        replaced = lambda *args, **kwargs: scale * own(*args, **kwargs)  # noqa: E731
    gradients = []
    for context in (
        hookpoints_edited(subject64, {f"layers.1.{kind}": lambda x: scale * x}),
        forwards_replaced({found: replaced}),
    ):
        with context:
            loss = subject64.hidden(batch.ids, batch.mask).pow(3).sum()
        gradients.append(float(torch.autograd.grad(loss, scale)[0]))
    assert abs(gradients[1]) > 1e-3
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-12)


def test_hooks_go_when_an_edit_fails(rotary):
    batch = rotary.tokenize(["CCO"])
    clean = rotary.run(batch).logits

    def fail(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), hookpoints_edited(rotary, {"layers.0.mlp_in": fail}):
        rotary.run(batch)
    assert torch.equal(rotary.run(batch).logits, clean)


@pytest.mark.parametrize(
    "name", ["layers.3.mlp_in", "layers.0.attn_pattern", "layers.-1.mlp_in", "mlp_in", "layers.0.mlp_in.x"]
)
def test_an_unknown_hookpoint_lists_the_kinds(rotary, name):
    with (
        pytest.raises(SubjectError, match=rf"no hookpoint .*N below 3.*{', '.join(KINDS)}"),
        hookpoints_edited(rotary, {name: lambda x: x}),
    ):
        pass
