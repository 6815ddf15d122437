"""Effects of single nodes: what is measured, what is first order, what the frozen graph says."""

import pytest
import torch

import tiny
from isotrace.attribution.ablation import ablated, feature_values, first_order
from isotrace.attribution.circuits.nodes import NodeMeter
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.influence import prune, total_effects
from isotrace.dictionaries.features import Features


def metered(subject, ablation, kind="mask"):
    batch, target = tiny.prepared(kind, subject)
    framing = frame(subject, tiny.random_dictionary(subject, window=2), batch, target)
    graph = build_graph(framing, max_features=10_000)
    return framing, graph, target, NodeMeter(subject, framing, graph, target, ablation)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_checked_nodes_are_measured_in_both_models(subject64, ablation):
    """With all active features in the graph its prediction is the frozen model's effect."""
    framing, graph, target, meter = metered(subject64, ablation)
    pruned = prune(graph, 0.8, 0.98)
    found = meter.check(pruned, 16, seed=0)
    assert len(found.nodes) == 16 == len(set(found.nodes.tolist()))
    ranked = pruned.influence[: graph.n_features].argsort(descending=True)
    assert found.nodes[:8].tolist() == ranked[:8].tolist()
    torch.testing.assert_close(found.graph, found.frozen, rtol=1e-7, atol=1e-9)
    assert float(found.frozen.abs().max()) > 1e-3
    assert float((found.free_running - found.frozen).abs().max()) > 1e-4, "the real subject is not linear"
    if ablation == "zero":
        torch.testing.assert_close(found.graph, total_effects(graph)[found.nodes])
    everything = meter.check(pruned, 10_000, seed=0)
    assert sorted(everything.nodes.tolist()) == list(range(graph.n_features))
    parts = subject64, Features(framing.dictionary), feature_values(framing.dictionary, ablation)
    slopes = torch.stack(first_order(*parts, framing.batch, target)).double()
    own = graph.feature_nodes[everything.nodes].unbind(1)
    torch.testing.assert_close(everything.first_order, slopes[own])
    singles = [row[None] for row in graph.feature_nodes[everything.nodes]]
    clean, alone = (ablated(*parts, framing.batch, target, s, complement=False) for s in ([singles[0][:0]], singles))
    torch.testing.assert_close(everything.free_running, (clean - alone).double(), rtol=1e-4, atol=2e-5)


def test_those_that_write_most_are_measured_and_the_rest_is_first_order(subject64):
    framing, graph, _, meter = metered(subject64, "mean")
    dictionary, reference = framing.dictionary, feature_values(framing.dictionary, "mean")
    sizes = [
        abs(float(a) - float(reference[s][f])) * float(dictionary.W_dec[s][f].norm())
        for (s, _, f), a in zip(graph.feature_nodes.tolist(), graph.activations, strict=True)
    ]
    largest = sorted(range(len(sizes)), key=lambda i: -sizes[i])[:5]
    found = meter.measure_largest(5)
    assert sorted(torch.nonzero(found.exact)[:, 0].tolist()) == sorted(largest)
    assert torch.equal(found.exact, ~found.measured.isnan())
    other = next(i for i in range(graph.n_features) if i not in largest)
    named = meter.measure([other, largest[0]])
    assert float(named.measured[largest[0]]) == float(found.measured[largest[0]]), "what was measured stays"
    assert float(named.best[other]) == float(named.measured[other]) != float(named.first_order[other])
    assert float(named.predicted[other]) == float(named.first_order[other]), "measured for its name: no prediction"
    torch.testing.assert_close(named.predicted[largest], named.measured[largest])
    assert bool(named.best.isfinite().all())
