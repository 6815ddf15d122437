"""Edges against a forward pass written by hand: every receiver's stream put together from the senders' outputs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tiny
from isotrace.base.errors import InputError, SubjectError
from isotrace.discovery.edges.circuits import circuit_rows, kept
from isotrace.discovery.methods import Problem, method_of
from isotrace.interventions import Heads, MLPs
from isotrace.interventions.edges import Edges, component_graph
from isotrace.studies.edge_methods import areas, faithfulness, first_edges, sizes_on

PLAIN = ("esm-absolute", "bert")  # one pre-norm, one post-norm


def metric(batch, final):
    """Not linear, and different for each token and dimension."""
    weight = torch.sin(torch.arange(final[0].numel()).to(final)).view(final.shape[1:])
    return ((final * weight).sum(-1) * batch.mask).sum(-1) + (final * weight).tanh().sum((1, 2))


def problem_on(subject, clean=("CCOCC",), corrupt=("NCOCO",)):
    batches = subject.tokenize([*clean]), subject.tokenize([*corrupt])
    return Problem.interchange(subject, Edges(), *batches, metric)


class ByHand:
    """ESM or BERT with learned positions, from the weights alone. `held` is what a cut edge carries."""

    def __init__(self, subject, held):
        self.subject, self.held, self.graph = subject, held, component_graph(subject)
        self.pre = subject.family.model_type == "esm"
        self.blocks = [SimpleNamespace(**dict(self._block(layer))) for layer in range(subject.n_layers)]

    def _block(self, layer):
        module = self.subject.module(self.subject.family.stacks[0].layers)[layer]
        attention = module.attention
        yield "attend", attention.self
        yield "join", attention.output.dense
        yield "first", module.intermediate.dense
        yield "last", module.output.dense
        yield "norms", (attention.LayerNorm, module.LayerNorm) if self.pre else (
            attention.output.LayerNorm, module.output.LayerNorm)  # fmt: skip

    def stream(self, written, layer, middle):
        """What is before the attention of a layer, or, with `middle`, before its MLP; `written` is by component."""
        x, heads = written[0], self.subject.n_heads(0)
        for at in range(layer + middle):
            block, start = self.blocks[at], 1 + at * (heads + 1)
            x = x + block.join(torch.cat([written[start + h] for h in range(heads)], -1))
            x = x if self.pre else block.norms[0](x)
            if at < layer:
                x = x + written[start + heads]
                x = x if self.pre else block.norms[1](x)
        return x

    def head(self, x, layer, index):
        block = self.blocks[layer]
        x = block.norms[0](x) if self.pre else x
        width = self.subject.d_head(layer)
        own = slice(index * width, (index + 1) * width)
        q, k, v = (m(x)[..., own] for m in (block.attend.query, block.attend.key, block.attend.value))
        return (q @ k.transpose(-1, -2) / width**0.5).softmax(-1) @ v

    def mlp(self, x, layer):
        block = self.blocks[layer]
        return block.last(F.gelu(block.first(block.norms[1](x) if self.pre else x)))

    def run(self, embedding, keep, fixed=()):
        """(outputs of all components, final hidden state) of the circuit `keep`; `fixed` components do not compute."""
        written, reads = [embedding], self.graph.reads(keep)
        for place, component in enumerate(self.graph.components[1:], 1):
            read = [w if reads[place, u] else self.held[u] for u, w in enumerate(written)]
            if place in dict(fixed):
                written.append(dict(fixed)[place])
            elif component.kind == "head":
                written.append(self.head(self.stream(read, component.layer, 0), component.layer, component.index))
            elif component.kind == "mlp":
                written.append(self.mlp(self.stream(read, component.layer, 1), component.layer))
            else:
                x = self.stream(read, component.layer, 0)
                return written, self.subject.model.esm.encoder.emb_layer_norm_after(x) if self.pre else x
        raise AssertionError


@pytest.fixture(params=PLAIN)
def by_hand(request, _loaded, double):
    """(problem, the same by hand, embeddings)."""
    subject = _loaded[request.param][1]
    problem = problem_on(subject)
    held = [values[..., c, :] for values in problem.reference for c in range(values.shape[2])]
    embedding = problem.components.record(subject, problem.batch)[0][0][..., 0, :]
    return problem, ByHand(subject, held), embedding


def test_any_circuit_of_edges_is_that_of_the_manual_forward(by_hand):
    problem, manual, embedding = by_hand
    n = len(manual.graph.edges)
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(12, n, generator=generator) < torch.linspace(0, 1, 12)[:, None]
    found = kept(problem, keep)
    for circuit, value in zip(keep, found, strict=True):
        expected = metric(problem.batch, manual.run(embedding, circuit)[1])
        assert float((value - expected).abs().max()) < 1e-9
    assert float((found[0] - found[-1]).abs()) > 1e-3


def test_path_patching_is_that_of_the_manual_forward(by_hand):
    """Outputs all held but the sender's; what the receiver makes of that goes into an ordinary run."""
    problem, manual, embedding = by_hand
    graph, every = manual.graph, torch.ones(len(manual.graph.edges), dtype=torch.bool)
    clean, final = manual.run(embedding, every)
    found = method_of("path_patching")(problem).values[0]
    for edge, (sender, receiver) in enumerate(graph.edges.tolist()):
        patched = manual.held[sender]
        without = [patched if u == sender else w for u, w in enumerate(clean)]
        component = graph.components[receiver]
        x = manual.stream(without, component.layer, component.kind == "mlp")
        if component.kind == "output":
            end = manual.subject.model.esm.encoder.emb_layer_norm_after(x) if manual.pre else x
        else:
            head = component.kind == "head"
            value = manual.head(x, component.layer, component.index) if head else manual.mlp(x, component.layer)
            end = manual.run(embedding, every, fixed=((receiver, value),))[1]
        expected = metric(problem.batch, final) - metric(problem.batch, end)
        assert abs(float(found[edge] - expected)) < 1e-9


@pytest.mark.every_family
def test_kept_edges_and_path_patching_agree_on_padded_batches(subject64):
    if subject64.objective == "denoising":
        with pytest.raises(SubjectError, match="cross-attention"):
            component_graph(subject64)
        return
    problem = problem_on(subject64, ("CCOCC", "OCCN"), ("NCOCO", "CCCO"))
    found = method_of("path_patching")(problem)
    n = len(found.edges)
    every = torch.ones(1, n, dtype=torch.bool)
    values = kept(problem, torch.cat([every, ~every, ~torch.eye(n, dtype=torch.bool)]))
    assert torch.allclose(values[0], problem.value(), rtol=0, atol=1e-9)
    assert problem.corrupt is not None
    corrupt = metric(problem.corrupt, subject64.hidden(problem.corrupt.ids, problem.corrupt.mask))
    assert torch.allclose(values[1], corrupt, rtol=0, atol=1e-9)
    assert torch.allclose(values[0] - values[2:], found.values.T, rtol=0, atol=1e-9)


@pytest.mark.every_family
def test_edge_attribution_is_first_order_and_sums_to_that_of_the_nodes(subject64):
    if subject64.objective == "denoising":
        assert method_of("edge_attribution_patching").refuse(_bare(subject64, Edges())) is not None
        return
    problem = problem_on(subject64, ("CCOCC", "OCCN"), ("NCOCO", "CCCO"))
    errors = []
    # transformers rotates queries in float32, which bounds how small; linear attention does not, and the kinks of its
    # feature map bound how large
    for size in (1e-5, 5e-6) if subject64.family.pattern == "dropout" and subject64.family.native else (1e-2, 5e-3):
        clean = problem.components.record(subject64, problem.batch)[0]
        near = tuple(z + size * (r - z) for z, r in zip(clean, problem.reference, strict=True))
        close = Problem(subject64, Edges(), problem.batch, metric, near)
        exact, found = (method_of(name)(close) for name in ("path_patching", "edge_attribution_patching"))
        errors.append(float((exact.values - found.values).norm() / size))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05), "the error is quadratic in the change"
    found = method_of("edge_attribution_patching")(problem)
    nodes = torch.cat(method_of("attribution_patching")(problem).over_positions(), 1)
    sums = torch.zeros_like(nodes).index_add_(1, found.edges[:, 0], found.values)
    assert tiny.relative(sums, nodes) < 1e-10


def _bare(subject, mediator):
    return Problem(subject, mediator, subject.tokenize(["CCO"]), metric, ())


def test_integrated_gradients_of_the_embedding_are_complete(rotary64):
    """Its edges together move the metric from that of the corrupt input to that of the clean one."""
    problem = problem_on(rotary64)
    run = method_of("edge_integrated_gradients")
    whole = problem.value() - kept(problem, torch.zeros(1, len(component_graph(rotary64).edges), dtype=torch.bool))[0]
    sums = [run(problem, n_steps=n) for n in (10, 20)]
    gaps = [float((s.values[:, s.edges[:, 0] == 0].sum(1) - whole).abs()) for s in sums]
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.2), "the midpoint rule is of second order"
    assert gaps[1] < 0.01 * float(whole.abs())
    with pytest.raises(InputError, match="n_steps is 0"):
        run(problem, n_steps=0)


def test_edges_are_in_the_order_of_computation(rotary):
    graph = component_graph(rotary)
    names = [str(c) for c in graph.components]
    assert names[:5] == ["embedding", "head 0.0", "head 0.1", "mlp 0", "head 1.0"]
    assert names[-1] == "output"
    found = {graph.name(edge) for edge in range(len(graph.edges))}
    assert {"head 0.0 → mlp 0", "mlp 0 → head 1.1", "embedding → output"} <= found
    assert not {"head 0.0 → head 0.1", "mlp 0 → head 0.0", "mlp 1 → mlp 0"} & found
    # 3 layers of 2 heads: head, MLP, output read what is before them
    assert len(found) == len(graph.edges) == 2 * (1 + 4 + 7) + (3 + 6 + 9) + 10


def test_receivers_that_read_the_same_share_a_copy(rotary):
    graph = component_graph(rotary)
    every = torch.ones(len(graph.edges), dtype=torch.bool)
    assert len(circuit_rows(graph, every)) == len(circuit_rows(graph, ~every)) == 1
    one = every.clone()
    one[[graph.name(e) for e in range(len(every))].index("head 0.1 → mlp 0")] = False
    assert len(circuit_rows(graph, one)) == 2


def test_means_serve_as_reference(rotary64):
    batch = rotary64.tokenize(["CCOCC", "OCCN"])
    reference = tuple(0.1 * torch.ones(size) for size in Edges().sizes(rotary64))
    problem = Problem(rotary64, Edges(), batch, metric, reference)
    found = method_of("path_patching")(problem)
    values = kept(problem, ~torch.eye(len(found.edges), dtype=torch.bool))
    assert torch.allclose(problem.value() - values, found.values.T, rtol=0, atol=1e-9)


def test_the_activations_of_edges_are_those_of_their_senders(rotary):
    batch = rotary.tokenize(["CCOCC"])
    found = Edges().record(rotary, batch)[0]
    for mediator, layers in ((Heads(), found[1::2]), (MLPs(), found[2::2])):
        assert all(torch.equal(a, b) for a, b in zip(mediator.record(rotary, batch)[0], layers, strict=True))


def test_what_cannot_be_done_is_refused(rotary):
    for name in ("path_patching", "edge_attribution_patching", "edge_integrated_gradients", "acdc"):
        with pytest.raises(SubjectError, match="give the mediator edge"):
            method_of(name)(_bare(rotary, Heads()))
    problem = problem_on(rotary)
    keep = torch.ones(1, 3, dtype=torch.bool)
    for given, reason in ((problem, "one column each"), (_bare(rotary, Heads()), "need the mediator edge, not head")):
        with pytest.raises(InputError, match=reason):
            kept(given, keep)


def test_faithfulness_and_its_areas_have_the_values_of_known_curves():
    assert sizes_on(12) == [1, 2, 5, 10, 12]
    assert first_edges(torch.tensor([0.1, 3.0, -2.0]), [0, 1, 2]).tolist() == [
        [False, False, False], [False, True, False], [True, True, False]]  # fmt: skip
    # two pairs of weights 1/4 and 3/4; no edge, some, all
    curve = faithfulness(np.array([[0.0, 1.0, 4.0], [4.0, 7.0, 8.0]]), np.array([[0.25, 0.75]]))
    assert curve.tolist() == [[pytest.approx((5.5 - 3) / (7 - 3)), 1.0]]
    grid = [1, 10, 100]
    straight, beyond = areas(np.array([[0.0, 0.5, 1.0], [2.0, 2.0, 2.0]]), grid)
    assert straight.tolist() == pytest.approx([0.5, 2.0])
    assert beyond.tolist() == pytest.approx([0.5, 1.0])
