"""Random plans, nested at random, equal plain hooks on the transformers module, in float64."""

import random
from contextlib import ExitStack

import pytest
import torch

import plain_models
import tiny
from isotrace.dictionaries.features import Features
from isotrace.interventions import (
    Add,
    Attentions,
    Clamp,
    Heads,
    Intervention,
    MLPInputs,
    MLPs,
    Neurons,
    Plan,
    Residuals,
    Scale,
    Select,
    Set,
    Subspaces,
)  # fmt: skip

pytestmark = pytest.mark.every_family
PLANS = 30  # of 19 variants: hundreds
AT = {"head": Heads, "neuron": Neurons, "mlp": MLPs, "mlp_input": MLPInputs, "attention": Attentions,
      "residual": Residuals}  # fmt: skip
SITES = {"head": "head_out", "neuron": "neuron", "mlp": "mlp_out", "mlp_input": "mlp_in", "attention": "attn_out",
         "residual": "resid_post"}  # fmt: skip


def drawn(rng, subject, dictionary, n_tokens):
    """(intervention, what a plain hook has to do: kind, layer, function of the tensor at the hookpoint)."""
    kind = rng.choice([*AT, "subspace", "feature"])
    layer = rng.randrange(subject.n_layers)
    generator = torch.Generator().manual_seed(rng.randrange(10**6))
    position = rng.choice([None, rng.randrange(n_tokens)])
    if kind == "subspace":
        basis = torch.linalg.qr(torch.randn(subject.d_model, 2, generator=generator)).Q.double()
        found, width, size = Subspaces({f"layers.{layer}.resid_post": basis}), 2, 1
    elif kind == "feature":
        found, width, size = Features(dictionary), 1, dictionary.config.n_features
    else:
        found = AT[kind]()
        size, width = found.sizes(subject)[layer]
    index = rng.choice([None, rng.randrange(size)])
    value = torch.randn(width, generator=generator).double()
    what, change = rng.choice([
        (Set(value), lambda x: value.expand_as(x)),
        (Add(value), lambda x: x + value),
        (Scale(-0.4), lambda x: -0.4 * x),
        (Clamp(-0.2, 0.3), lambda x: x.clamp(-0.2, 0.3)),
    ])  # fmt: skip
    where = Select(
        (0,) if kind == "subspace" else (layer,), None if index is None else (index,),
        None if position is None else (position,),
    )  # fmt: skip

    def edited(values):
        new = values.clone()
        at, which = slice(None) if position is None else position, slice(None) if index is None else index
        new[:, at, which] = change(values[:, at, which])
        return new

    return Intervention(found, what, where), (kind, layer, size, getattr(found, "bases", None), edited)


def plain(variant, subject, dictionary, batch, steps):
    """The same by hooks of torch: each step its own, in order; features by dense matrices, every step on the
    activations as the one before it left them, unless what they are computed from was changed in between."""
    model, handles = subject.model, []
    current: dict[int, tuple] = {}
    with ExitStack() as stack:
        for kind, layer, size, bases, edited in steps:
            if kind == "feature":
                first, _ = plain_models.module(variant, model, layer, "mlp_in")
                delta: dict[str, torch.Tensor] = {}

                def read(_, args, layer=layer, edited=edited, delta=delta):
                    x = args[0]
                    known = current.get(layer)
                    values = known[1] if known is not None and known[0] is x else dictionary.encode(layer, x).dense(12)
                    new = edited(values[..., None])[..., 0]
                    current[layer] = (x, new)
                    delta["a"] = new - values

                handles.append(first.register_forward_pre_hook(read))
                for target in dictionary.config.targets(layer):
                    last, _ = plain_models.module(variant, model, target, "mlp_out")

                    def write(_, args, out, layer=layer, target=target, delta=delta):
                        return out + delta["a"] @ dictionary.decoder(layer, target)

                    handles.append(last.register_forward_hook(write))
                continue
            site = SITES.get(kind, "resid_post")
            module, is_input = plain_models.module(variant, model, layer, site)
            basis = None if bases is None else next(iter(bases.values()))

            def change(x, size=size, edited=edited, basis=basis):
                if basis is None:
                    return edited(x.unflatten(-1, (size, -1))).flatten(-2)
                values = (x @ basis)[..., None, :]
                return x + (edited(values) - values)[..., 0, :] @ basis.T

            if is_input:
                hook = lambda _, args, change=change: (change(args[0]), *args[1:])  # noqa: E731
                handles.append(module.register_forward_pre_hook(hook))
            else:

                def leave(_, args, out, change=change):
                    return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

                handles.append(module.register_forward_hook(leave))
        for handle in handles:
            stack.callback(handle.remove)
        return subject.hidden(batch.ids, batch.mask)


def nested(subject, batch, plans):
    with ExitStack() as stack:
        for plan in plans:
            stack.enter_context(subject.edited(plan))
        return subject.hidden(batch.ids, batch.mask)


@torch.no_grad()
def test_random_nested_plans_equal_plain_hooks(subject64, variant):
    rng = random.Random(0)
    dictionary = tiny.random_dictionary(subject64, window=2).double()
    batch = subject64.tokenize(["CCO", "c1cc[nH]c1"])
    clean, moved = subject64.hidden(batch.ids, batch.mask), 0
    for _ in range(PLANS):
        made = [drawn(rng, subject64, dictionary, 4) for _ in range(rng.randrange(1, 5))]
        interventions, plans = [one for one, _ in made], []
        while interventions:
            n = rng.randrange(1, len(interventions) + 1)
            plans.append(Plan.of(*interventions[:n]))
            interventions = interventions[n:]
        found = nested(subject64, batch, plans)
        expected = plain(variant, subject64, dictionary, batch, [step for _, step in made])
        torch.testing.assert_close(found[batch.mask], expected[batch.mask], rtol=1e-10, atol=1e-10)
        moved += not torch.allclose(found, clean, atol=1e-6)
    assert moved > PLANS / 2
    assert torch.equal(subject64.hidden(batch.ids, batch.mask), clean)
