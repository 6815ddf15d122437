"""The frozen subject equals the subject on its input, and is affine everywhere."""

import pytest
import torch

import tiny
from isotrace.subjects.dispatch import forwards_replaced
from isotrace.subjects.frozen import FrozenSubject, Sources

pytestmark = pytest.mark.every_family
KINDS = ("mask", "diff", "mutation", "probe")


def freeze(subject, kind="probe"):
    batch, target = tiny.prepared(kind, subject)
    return FrozenSubject(subject, batch), batch, target


def unpack(frozen, flat):
    """Sources from one tensor `[tokens, sum of widths]`."""
    parts = flat.split([t.shape[-1] for t in frozen.sources.tensors()], -1)
    n = len(frozen.sources.embeddings)
    return Sources(tuple(t[None] for t in parts[:n]), tuple(t[None] for t in parts[n:]))


def pack(frozen):
    return torch.cat([t[0] for t in frozen.sources.tensors()], -1)


def scalar(frozen, batch, target, final):
    """The target through the frozen head or the probe."""
    if target.kind == "probe":
        return target.value(frozen.subject, batch, final)[0]
    return target._predicted(frozen.subject, lambda place: frozen.head_map(place)(final[:, place]))[0]


def unfrozen_value(frozen, batch, target, flat):
    """The target with the same sources, but attention, norms and head as the subject computes them."""
    subject, sources = frozen.subject, unpack(frozen, flat)
    modules = [embedding.module for embedding in subject.embeddings]
    modules += [subject.mlp(layer)[1] for layer in range(subject.n_layers)]
    values = zip(modules, sources.tensors(), strict=True)
    replaced = {module: lambda *_, value=value, **__: value for module, value in values}
    with forwards_replaced(replaced):
        final = subject.hidden(batch.ids, batch.mask)
    return target.value(subject, batch, final)[0]


def test_replay_of_the_actual_sources_is_the_subject(subject64):
    frozen, batch, _ = freeze(subject64, "mask")
    replay = frozen.replay(frozen.sources)
    names = [f"layers.{i}.mlp_in" for i in range(subject64.n_layers)]
    run = subject64.run(batch, capture=names)
    for name, found in zip(names, replay.mlp_in, strict=True):
        torch.testing.assert_close(found, run.captured[name], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(replay.final, run.final, rtol=1e-10, atol=1e-10)
    for position in range(batch.ids.shape[1]):
        logits = frozen.head_map(position)(replay.final[:, position])
        torch.testing.assert_close(logits, run.logits[:, position], rtol=1e-10, atol=1e-10)


def test_replay_takes_a_batch_and_a_function_for_the_mlps(subject64):
    frozen, _, _ = freeze(subject64)
    three = frozen.sources.map(lambda t: t.expand(3, -1, -1))
    seen = []

    def mlp(layer, x):
        seen.append(x)
        return frozen.sources.mlp_out[layer].expand_as(x)

    replay = frozen.replay(three, mlp)
    torch.testing.assert_close(replay.final, frozen.actual.final.expand(3, -1, -1), rtol=1e-10, atol=1e-10)
    for x, expected in zip(seen, frozen.actual.mlp_in, strict=True):
        torch.testing.assert_close(x, expected.expand(3, -1, -1), rtol=1e-10, atol=1e-10)


def test_the_subject_is_itself_again_after_freezing(subject):
    batch = subject.tokenize([tiny.SMILES])
    before = subject.run(batch).logits
    frozen = FrozenSubject(subject, batch)
    frozen.replay(frozen.sources.map(torch.zeros_like))
    frozen.head_map(1)(frozen.actual.final[:, 1])
    assert torch.equal(subject.run(batch).logits, before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hessian_is_zero_and_that_of_the_subject_is_not(subject64, kind):
    frozen, batch, target = freeze(subject64, kind)
    start = pack(frozen)
    directions = torch.randn(3, *start.shape, generator=torch.Generator().manual_seed(1))

    def second(function):
        """|H v| per source `[n_sources]`, largest over the random directions."""
        widths = [t.shape[-1] for t in frozen.sources.tensors()]
        worst = torch.zeros(len(widths))
        for direction in directions:
            at = start.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(function(at), at, create_graph=True)
            assert float(gradient.detach().abs().max()) > 0
            product = (gradient * direction).sum()
            # the gradient of an affine function does not depend on its input, and autograd then keeps no graph
            if product.requires_grad:
                (curvature,) = torch.autograd.grad(product, at, allow_unused=True)
                if curvature is not None:
                    worst = torch.maximum(worst, torch.stack([c.abs().max() for c in curvature.split(widths, -1)]))
        return worst

    assert float(second(lambda at: scalar(frozen, batch, target, frozen.replay(unpack(frozen, at)).final)).max()) == 0
    assert float(second(lambda at: unfrozen_value(frozen, batch, target, at)).min()) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_superposition(subject64, kind):
    """f(a + b) − f(b) = f(a) − f(0): nothing that depends on the input hides behind a detach."""
    frozen, batch, target = freeze(subject64, kind)
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, *pack(frozen).shape, generator=generator)

    def outputs(flat):
        replay = frozen.replay(unpack(frozen, flat))
        return torch.cat([*(x.flatten() for x in replay.mlp_in), replay.final.flatten(),
                          scalar(frozen, batch, target, replay.final)[None]])  # fmt: skip

    zero = torch.zeros_like(a)
    left, right = outputs(a + b) - outputs(b), outputs(a) - outputs(zero)
    assert tiny.relative(left, right) < 1e-10
    free = [unfrozen_value(frozen, batch, target, x) for x in (a + b, b, a, zero)]
    assert abs(free[0] - free[1] - free[2] + free[3]) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_as_an_affine_function_reproduces_its_value(subject64, kind):
    frozen, batch, target = freeze(subject64, kind)
    gradient, constant = target.linear(frozen)
    assert gradient.shape == frozen.actual.final.shape[1:]
    value = target.value(subject64, batch, frozen.actual.final)[0]
    assert float((gradient * frozen.actual.final[0]).sum()) + constant == pytest.approx(float(value), rel=1e-6)


def test_padding_and_several_sequences_are_refused(rotary):
    for sequences in (["CC", "CCO"], ["CC", "CO"]):
        with pytest.raises(ValueError, match="one unpadded sequence"):
            FrozenSubject(rotary, rotary.tokenize(sequences))
