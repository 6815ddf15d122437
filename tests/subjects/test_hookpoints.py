"""Hookpoints are what a plain hook on the transformers module sees, and edits reach everything behind them."""

from functools import partial

import pytest
import torch

import plain_models
import tiny
from isotrace.base.errors import SubjectError
from isotrace.subjects.dispatch import (
    Site,
    forwards_replaced,
    hookpoints_edited,
    mlps_computed_by,
    overlaid,
    patterns_recorded,
    patterns_set,
)
from isotrace.subjects.fast import fast_kernels

pytestmark = pytest.mark.every_family
KINDS = plain_models.KINDS


@pytest.fixture
def batch(subject):
    return subject.tokenize(["CCO", "c1cc[nH]c1C"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, tiny.N_LAYERS - 1])
def test_a_capture_is_what_a_plain_hook_sees(subject, variant, batch, layer, kind):
    seen = []
    handle = plain_models.watch(*plain_models.module(variant, subject.model, layer, kind), seen.append)
    plain_models.run(variant, subject.model, batch)
    handle.remove()
    captured = subject.run(batch, capture=[f"layers.{layer}.{kind}"]).captured
    # the caches of decoders, which a subject does without, change the layout in memory and with it the last bits
    assert tiny.relative(captured[f"layers.{layer}.{kind}"][batch.mask], seen[0][batch.mask]) < 1e-6


def test_the_stream_is_what_its_parts_add_up_to(subject, variant, batch):
    """In a block without cross-attention: the encoder's last, or the last but one."""
    layer = subject.stack_sizes[0] - 1 - (len(subject.stack_sizes) == 1)
    names = [f"layers.{layer}.{kind}" for kind in KINDS]
    x = [subject.run(batch, capture=names).captured[name] for name in names]
    pre, heads, attention, mlp_in, neuron, mlp_out, post = x
    block, joins, _, last = plain_models.blocks(variant, subject.model)[layer]
    assert tiny.relative(attention, joins(heads)) < 1e-6
    assert heads.shape[-1] == subject.n_heads(layer) * subject.d_head(layer)
    first_norm, second_norm, on_the_stream = plain_models.norms(variant, block)
    assert tiny.relative(mlp_out, last(neuron)) < 1e-6
    if on_the_stream:
        middle = first_norm(pre + attention)
        assert tiny.relative(mlp_in, middle) < 1e-6
        assert tiny.relative(post, second_norm(middle + mlp_out)) < 1e-6
    else:
        attention, mlp_out = (x / plain_models.scale(block) for x in (attention, mlp_out))
        read = first_norm(pre) if second_norm is None else second_norm(pre + attention)
        assert tiny.relative(mlp_in, read) < 1e-6
        assert tiny.relative(post, pre + attention + mlp_out) < 1e-6


def test_a_block_ends_where_the_next_begins(subject, batch):
    first = 0 if subject.stack_sizes[0] > 1 else subject.stack_sizes[0]
    names = [f"layers.{first}.resid_post", f"layers.{first + 1}.resid_pre"]
    captured = subject.run(batch, capture=names).captured
    assert torch.equal(captured[names[0]], captured[names[1]])


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_equals_replacing_the_forward(subject, variant, batch, kind):
    """The same change made in the module's own forward gives the same logits."""
    found, is_input = plain_models.module(variant, subject.model, 1, kind)
    change = lambda x: 0.5 * x + 0.3  # noqa: E731
    replaced = plain_models.changed(partial(type(found).forward, found), is_input, change)
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
def test_edits_are_differentiable(subject64, variant, kind):
    """The gradient is that of the same change written into the module's own forward."""
    batch = subject64.tokenize(["CCO"])
    found, is_input = plain_models.module(variant, subject64.model, 1, kind)
    scale = torch.ones((), requires_grad=True)
    replaced = plain_models.changed(partial(type(found).forward, found), is_input, lambda x: x + scale * x.pow(2))
    gradients = []
    for context in (
        hookpoints_edited(subject64, {f"layers.1.{kind}": lambda x: x + scale * x.pow(2)}),
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


def test_contexts_around_one_module_compose():
    """The inner one meets what the outer one has made of it; what computes it anew hides what was made of its output,
    and, where it reads nothing, of its input."""
    module = torch.nn.Identity()
    site = lambda **given: overlaid([(module, Site(**given))])  # noqa: E731
    triple, more = (lambda _, args: (3 * args[0],)), (lambda _, args: (args[0] + 1,))
    double, less = (lambda _, args, out: 2 * out), (lambda _, args, out: out - 1)
    plus = lambda x: x + 10  # noqa: E731
    cases = [
        (site(before=(triple,)), site(before=(more,)), 7),
        (site(after=(double,)), site(after=(less,)), 3),
        (site(before=(triple,)), site(forward=plus), 16),
        (site(before=(triple,)), site(forward=lambda x: x + 10, fresh=True), 12),
        (site(after=(double,)), site(forward=plus), 12),
        (site(forward=plus), site(after=(double,)), 24),
        (site(forward=plus), site(before=(triple,)), 16),
        (site(forward=plus), site(forward=lambda x: x + 20), 22),
    ]
    for outer, inner, expected in cases:
        with outer, inner:
            assert int(module(torch.tensor(2))) == expected


def test_what_computes_a_module_goes_before_a_faster_way_to():
    module, x = torch.nn.Linear(2, 2), torch.zeros(1, 2)
    fast = lambda: overlaid([(module, Site(kernel=lambda x: x + 5))])  # noqa: E731
    given = lambda: forwards_replaced({module: lambda x: x + 1})  # noqa: E731
    with fast():
        assert module(x).tolist() == [[5, 5]]
    for first, second in ((fast, given), (given, fast)):
        with first(), second():
            assert module(x).tolist() == [[1, 1]]
    assert torch.equal(module(x), module.bias[None])


@torch.no_grad()
def test_faster_kernels_step_aside(subject, batch):
    """Whichever context is the outer one: a pattern that is read or set, or an MLP that something else computes, gives
    with faster kernels what it gives without."""

    def uniform(module, own, rows):
        return torch.full_like(own(), 1 / own().shape[-1])

    changes = [lambda: patterns_set(subject, uniform), lambda: mlps_computed_by(subject, lambda layer, x: 2 * x)]
    clean = subject.hidden(batch.ids, batch.mask)[batch.mask]
    for change in changes:
        with change():
            expected = subject.hidden(batch.ids, batch.mask)[batch.mask]
        assert tiny.relative(clean, expected) > 1e-3
        for first, second in ((change(), fast_kernels(subject)), (fast_kernels(subject), change())):
            with first, second:
                found = subject.hidden(batch.ids, batch.mask)[batch.mask]
            assert tiny.relative(found, expected) < 1e-5
    with patterns_recorded(subject) as own:
        subject.hidden(batch.ids, batch.mask)
    with fast_kernels(subject), patterns_recorded(subject) as seen:
        found = subject.hidden(batch.ids, batch.mask)[batch.mask]
    assert tiny.relative(found, clean) < 1e-5
    assert seen.keys() == own.keys()
    assert all(tiny.relative(pattern, own[module]) < 1e-5 for module, pattern in seen.items())
