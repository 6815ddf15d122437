"""Ablations against a reference written with transformers' own model and hooks."""

import pytest
import torch

import plain_models
import tiny
from isotrace.attribution.ablation import ablate_in_frozen
from isotrace.attribution.graph import build_graph, frame
from isotrace.subjects.dispatch import watched


def every_node(dictionary, n_tokens):
    c = dictionary.config
    return torch.cartesian_prod(torch.arange(c.n_layers), torch.arange(n_tokens), torch.arange(c.n_features))


def active_nodes(subject, dictionary, batch, target):
    """Nodes of the graph `[n, 3]`: every feature active on the clean input."""
    return build_graph(frame(subject, dictionary, batch, target), max_features=10_000).feature_nodes


@torch.no_grad()
def reference(variant, model, dictionary, batch, subject, target, nodes, values):
    """Target of a plain model whose hooks move each listed feature from its current activation to `values[l, f]`.

    The activation is recomputed from the input the MLP has in this very pass; the decoder rows are added to the
    outputs of this layer and the later ones. Layers are counted as they run.
    """
    seen, moved, config = [], {}, dictionary.config

    def remember(module, args):
        seen.append(args[0][0])

    def change(module, args, output):
        layer = len(seen) - 1
        h = seen[layer] @ dictionary.W_enc[layer] + dictionary.b_enc[layer]
        for node_layer, position, feature in nodes:
            if node_layer == layer:
                ranked = h[position].sort(descending=True).indices[: config.k].tolist()
                current = max(0.0, float(h[position, feature])) if feature in ranked else 0.0
                moved[layer, position, feature] = float(values[layer, feature]) - current
        output = output.clone()
        for (source, position, feature), delta in moved.items():
            if layer < source + config.window:
                at = (layer - source) * config.d_out
                output[0, position] += delta * dictionary.W_dec[source][feature, at : at + config.d_out]
        return output

    handles = []
    for _, _, first, last in plain_models.blocks(variant, model):
        handles += [first.register_forward_pre_hook(remember), last.register_forward_hook(change)]
    final, logits = plain_models.run(variant, model, batch)
    for handle in handles:
        handle.remove()
    assert len(seen) == config.n_layers
    if target.kind == "probe":
        return float(final[0, 1:-1].mean(0) @ target.probe.weight[:, 0] + target.probe.bias[0])
    # a causal model predicts a token from the place before it
    logits = logits[0, target.position - (variant in tiny.CAUSAL)]
    return float(logits[target.positive] - logits.mean())


@pytest.mark.every_family
@pytest.mark.parametrize("kind", ["mask", "probe"])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_ablation_equals_plain_transformers(subject, folders, variant, kind, window, ablation):
    batch, target = tiny.prepared(kind, subject)
    dictionary = tiny.random_dictionary(subject, window=window)
    nodes = active_nodes(subject, dictionary, batch, target)
    generator = torch.Generator().manual_seed(4)
    sets = [nodes[torch.randperm(len(nodes), generator=generator)[:n]] for n in (1, 6, 15)]
    sets.insert(1, nodes[nodes[:, 0] == nodes[:, 0].max()][:2])  # a pass that begins at the last block
    arguments = (subject, dictionary, batch, target, sets)
    found = tiny.ablated(*arguments, complement=False, ablation=ablation, chunk=2)
    values = dictionary.mean_activation if ablation == "mean" else torch.zeros_like(dictionary.mean_activation)
    model = plain_models.plain(variant, folders[variant])
    expected = [reference(variant, model, dictionary, batch, subject, target, s.tolist(), values) for s in sets]
    assert found.tolist() == pytest.approx(expected, rel=2e-4, abs=2e-4)
    clean = float(target.value(subject, batch, subject.run(batch).final))
    assert max(abs(value - clean) for value in expected) > 1e-2, "the ablations do something"


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_the_complement_equals_ablating_the_others(subject, ablation):
    batch, target = tiny.prepared("probe", subject)
    dictionary = tiny.random_dictionary(subject, window=2)
    everything = every_node(dictionary, batch.ids.shape[1])
    kept = torch.rand(len(everything), generator=torch.Generator().manual_seed(5)) < 0.5
    arguments = {"ablation": ablation}
    one = tiny.ablated(subject, dictionary, batch, target, [everything[kept]], complement=True, **arguments)
    two = tiny.ablated(subject, dictionary, batch, target, [everything[~kept]], complement=False, **arguments)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_keeping_everything_and_ablating_nothing_change_nothing(subject, ablation):
    batch, target = tiny.prepared("mask", subject)
    dictionary = tiny.random_dictionary(subject)
    clean = target.value(subject, batch, subject.run(batch).final)
    everything = every_node(dictionary, batch.ids.shape[1])
    kept = tiny.ablated(subject, dictionary, batch, target, [everything], complement=True, ablation=ablation)
    none = tiny.ablated(subject, dictionary, batch, target, [everything[:0]], complement=False, ablation=ablation)
    torch.testing.assert_close(kept, clean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(none, clean, rtol=1e-6, atol=1e-6)


def test_an_inactive_feature_has_nothing_to_ablate(subject):
    batch, target = tiny.prepared("mask", subject)
    dictionary = tiny.random_dictionary(subject)
    active = {tuple(n) for n in active_nodes(subject, dictionary, batch, target).tolist()}
    inactive = [n for n in every_node(dictionary, batch.ids.shape[1]).tolist() if tuple(n) not in active]
    # in layer 0 alone: features of later layers may wake up, which is the point of a free-running pass
    first = torch.tensor([n for n in inactive if n[0] == 0])
    assert len(first) > 10
    arguments = (subject, dictionary, batch, target, [first])
    clean = target.value(subject, batch, subject.run(batch).final)
    zero = tiny.ablated(*arguments, complement=False, ablation="zero")
    torch.testing.assert_close(zero, clean, rtol=1e-6, atol=1e-6)
    mean = tiny.ablated(*arguments, complement=False, ablation="mean")
    assert float((mean - clean).abs()) > 1e-3, "its mean is not zero"


@pytest.mark.parametrize("complement", [False, True])
def test_errors_are_kept(subject, complement):
    """A dictionary that writes nothing reconstructs nothing, yet ablating its features changes nothing."""
    batch, target = tiny.prepared("probe", subject)
    dictionary = tiny.random_dictionary(subject)
    for weight in dictionary.W_dec:
        weight.data.zero_()
    sets = [every_node(dictionary, batch.ids.shape[1])[::2]]
    found = tiny.ablated(subject, dictionary, batch, target, sets, complement=complement, ablation="mean")
    torch.testing.assert_close(found, target.value(subject, batch, subject.run(batch).final), rtol=1e-6, atol=1e-6)


def test_sets_do_not_touch_each_other(subject):
    batch, target = tiny.prepared("probe", subject)
    dictionary = tiny.random_dictionary(subject)
    nodes = active_nodes(subject, dictionary, batch, target)
    sets = [nodes[:1], nodes[5:9], nodes[:0], nodes]
    for complement in (False, True):
        together = tiny.ablated(
            subject, dictionary, batch, target, sets, complement=complement, ablation="mean", chunk=4
        )
        alone = [tiny.ablated(subject, dictionary, batch, target, [s], complement=complement, ablation="mean")
                 for s in sets]  # fmt: skip
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.every_family
def test_the_frozen_ablation_to_its_own_activation_changes_nothing(subject64):
    """`mean` with the clean activation as the mean is the identity; chunks do not matter."""
    batch, target = tiny.prepared("mask", subject64)
    dictionary = tiny.random_dictionary(subject64)
    framing = frame(subject64, dictionary, batch, target)
    nodes = build_graph(framing, max_features=10_000).feature_nodes
    one_each = torch.stack([nodes[i] for i in range(0, len(nodes), 7)])
    value = target.value(subject64, batch, framing.frozen.actual.final)
    for node in one_each:
        layer, position, feature = node.tolist()
        slot = int((framing.active.indices[layer, position] == feature).nonzero()[0, 0])
        dictionary.mean_activation[layer, feature] = framing.active.values[layer, position, slot]
        found = ablate_in_frozen(framing, node[None], "mean")
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-9)
    whole = ablate_in_frozen(framing, one_each, "zero", chunk=100)
    parts = ablate_in_frozen(framing, one_each, "zero", chunk=2)
    torch.testing.assert_close(whole, parts, rtol=1e-10, atol=1e-10)
    assert float((whole - value).abs().max()) > 1e-3
    assert ablate_in_frozen(framing, one_each[:0], "zero").shape == (0,)


@torch.no_grad()
@pytest.mark.parametrize("complement", [False, True])
def test_what_sets_have_in_common_runs_once(subject, complement):
    """Up to the first edit one row runs for all sets; single nodes begin at their own block."""
    batch, target = tiny.prepared("probe", subject)
    dictionary = tiny.random_dictionary(subject)
    nodes = active_nodes(subject, dictionary, batch, target)
    sets, seen = [*nodes[:: len(nodes) // 9][:, None]], []
    first, last = (subject.mlp(layer)[0] for layer in (0, subject.n_layers - 1))
    see = lambda module, args, _: seen.append((module is first, len(args[0])))  # noqa: E731
    arguments = {"complement": complement, "ablation": "mean", "chunk": 16}
    with watched([first, last], see):
        found = tiny.ablated(subject, dictionary, batch, target, sets, **arguments)
    assert {rows for early, rows in seen if early} == {1}
    late = [rows for early, rows in seen if not early]
    if complement:
        assert late == [len(sets)]
    else:
        layers = [int(one[0, 0]) for one in sets]
        # of the block that an edit comes in, what is before it runs on one row; one more pass records the blocks
        counts = [layers.count(layer) for layer in sorted({*layers}) if layer < subject.n_layers - 1]
        assert sorted(late) == sorted([1, *counts, *[1] * (subject.n_layers - 1 in layers)])
    alone = [tiny.ablated(subject, dictionary, batch, target, [one], **arguments) for one in sets]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-5)
