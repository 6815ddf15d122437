"""Contextual decomposition against passes in which both parts are written out."""

import pytest
import torch
from transformers.activations import ACT2FN

import tiny
from isotrace.base.errors import SubjectError
from isotrace.dictionaries.features import Features
from isotrace.discovery.linear_rules import first_maps
from isotrace.discovery.methods import Problem, cdt, method_of
from isotrace.discovery.methods.relp import propagated
from isotrace.interventions import Heads, MLPs, Neurons, Residuals, mean_values
from isotrace.subjects.frozen import FrozenSubject


def problem_on(subject, texts, mediator, kind="mask"):
    batch = subject.tokenize(texts)
    target = tiny.make_target(kind, subject, batch)
    batch = target.prepare(subject, batch)
    reference = mean_values(subject, mediator, [batch])
    return Problem(subject, mediator, batch, lambda b, final: target.value(subject, b, final), reference)


def slope_at_the_end(problem):
    final = problem.subject.hidden(problem.batch.ids, problem.batch.mask).detach().requires_grad_(True)
    with propagated(problem.subject):
        return torch.autograd.grad(problem.metric(problem.batch, final).sum(), final)[0]


def written_out(subject, frozen, reference, node):
    """(MLP outputs `[layers, tokens, d]`, final `[tokens, d]`) of the part that comes from the MLP at `node`.

    Two rows run through the frozen subject, the totals and the rest; with the biases left to the rest, all but the
    MLPs is one affine map for both."""
    config = subject.model.config.to_dict()
    names = ("hidden_activation", "activation_function", "dense_act_fn", "hidden_act")
    act = ACT2FN[next((config[name] for name in names if name in config), "gelu")]  # ESM has no other
    parts = []

    def function(z, size):
        u, *v = z.split(size, -1)
        return act(u) * v[0] if v else act(u)

    def compute(layer, x):
        z = torch.cat([type(m).forward(m, x) for m in first_maps(subject, layer)], -1)
        weight, bias = subject.neuron_writes(layer)
        total, rest = function(z, len(weight))
        part = 0.5 * (function(z[:1] - z[1:], len(weight))[0] + total - rest)
        out = torch.stack([total, total - part]) @ weight + (0 if bias is None else bias)
        if layer == node[0]:
            out[1, node[1]] = reference[layer][0]
        parts.append(out[0] - out[1])
        return out

    replay = frozen.replay(frozen.sources.map(lambda t: t.repeat(2, 1, 1)), compute)
    return torch.stack(parts), replay.final[0] - replay.final[1]


@pytest.mark.every_family
@pytest.mark.parametrize("kind", ["mask", "probe"])
@torch.no_grad()
def test_against_totals_and_rest_in_the_frozen_subject(subject64, kind):
    problem = problem_on(subject64, [tiny.SMILES], MLPs(), kind)
    frozen = FrozenSubject(subject64, problem.batch)
    with torch.enable_grad():
        slope = slope_at_the_end(problem)[0]
    sources = torch.tensor([[0, 1, 0], [1, 3, 0], [subject64.n_layers - 1, 2, 0]])
    parts, scores = cdt.cdt_edges(problem, sources, share_bias=False)
    assert all(part.shape == (3, *problem.batch.ids.shape, 1, subject64.d_model) for part in parts)
    for place, node in enumerate(sources.tolist()):
        outputs, final = written_out(subject64, frozen, problem.reference, node)
        assert float(scores[place]) == pytest.approx(float((final * slope).sum()), rel=1e-8, abs=1e-11)
        found = torch.stack([part[place, 0, :, 0] for part in parts])
        assert found == pytest.approx(outputs, rel=1e-8, abs=1e-10)
        assert float(found[: node[0]].abs().sum()) < 1e-12  # nothing before the source
    whole = method_of("cdt")(problem, share_bias=False)
    assert [float(whole.values[a][0, b, c]) for a, b, c in sources] == pytest.approx(scores[:, 0].tolist())


def bert_by_hand(subject, problem, node):
    """Score of the MLP at `node` in BERT, β and γ of every activation propagated side by side."""
    bert, n_tokens = subject.model.bert, problem.batch.ids.shape[1]
    patterns = FrozenSubject(subject, problem.batch).patterns

    def shared(part, rest, bias):
        share = part.abs() / (part.abs() + rest.abs())
        return part + torch.nan_to_num(share) * bias, rest + (1 - torch.nan_to_num(share)) * bias

    def linear(part, rest, module):
        return shared(part @ module.weight.T, rest @ module.weight.T, module.bias)

    def norm(part, rest, module):
        sigma = ((part + rest).var(-1, unbiased=False, keepdim=True) + module.eps).sqrt()
        return shared(*((x - x.mean(-1, keepdim=True)) / sigma * module.weight for x in (part, rest)), module.bias)

    gelu = torch.nn.functional.gelu
    rest = bert.embeddings(problem.batch.ids)[0]
    part = torch.zeros_like(rest)
    for layer, block in enumerate(bert.encoder.layer):
        attention = block.attention
        values = linear(part, rest, attention.self.value)
        by_head = (v.view(n_tokens, subject.n_heads(layer), -1).transpose(0, 1) for v in values)
        mixed = ((patterns[attention.self][0] @ v).transpose(0, 1).flatten(1) for v in by_head)
        a, b = linear(*mixed, attention.output.dense)
        part, rest = norm(part + a, rest + b, attention.output.LayerNorm)
        a, b = linear(part, rest, block.intermediate.dense)
        half = 0.5 * (gelu(a) + gelu(a + b) - gelu(b))
        a, b = linear(half, gelu(a + b) - half, block.output.dense)
        if layer == node[0]:
            a[node[1]], b[node[1]] = (a + b - problem.reference[layer])[node[1]], problem.reference[layer][0]
        part, rest = norm(part + a, rest + b, block.output.LayerNorm)
    assert part + rest == pytest.approx(subject.hidden(problem.batch.ids, problem.batch.mask)[0], rel=1e-10)
    with torch.enable_grad():
        return float((part * slope_at_the_end(problem)[0]).sum())


@torch.no_grad()
def test_biases_are_shared_by_magnitude(folders, double):
    subject = tiny.in_float64(tiny.load_tiny(folders["bert"]))
    problem = problem_on(subject, [tiny.SMILES], MLPs())
    found = method_of("cdt")(problem)
    for layer, position in [(0, 1), (0, 4), (1, 2), (2, 2), (2, 5)]:
        expected = bert_by_hand(subject, problem, (layer, position))
        assert float(found.values[layer][0, position, 0]) == pytest.approx(expected, rel=1e-8, abs=1e-11)
    assert found.cost == sum(value.numel() for value in found.values) + 1


@pytest.mark.parametrize(("name", "setting"), [("bert", "hidden_act"), ("gpt2", "activation_function"),
                                               ("bart", "activation_function")])  # fmt: skip
def test_linear_mlps_give_the_frozen_effect(tmp_path, double, name, setting):
    subject = tiny.in_float64(tiny.load_tiny(tiny.save_subject(tiny.tiny_model(name, **{setting: "linear"}), tmp_path)))
    problem = problem_on(subject, [tiny.SMILES], MLPs())
    frozen = FrozenSubject(subject, problem.batch)
    leaves = [torch.zeros_like(m, requires_grad=True) for m in frozen.actual.mlp_in]

    def compute(layer, x):
        weight, bias = subject.neuron_writes(layer)
        (first,) = first_maps(subject, layer)
        return type(first).forward(first, x) @ weight + bias + leaves[layer]  # its own forward is replaced here

    final = frozen.replay(frozen.sources, compute).final
    slopes = torch.autograd.grad((final * slope_at_the_end(problem)).sum(), leaves)
    scores = method_of("cdt")(problem, share_bias=False).values
    for layer, slope in enumerate(slopes):
        fall = (frozen.sources.mlp_out[layer] - problem.reference[layer]) * slope
        assert scores[layer][..., 0] == pytest.approx(fall.sum(-1), rel=1e-9, abs=1e-12)


@pytest.mark.every_family
@pytest.mark.parametrize("mediator", [Heads(), Residuals()])
def test_a_padded_batch_in_chunks_scores_as_each_alone(subject64, mediator, monkeypatch):
    texts = [tiny.SMILES, "CCO"]
    together = problem_on(subject64, texts, mediator, "probe")
    monkeypatch.setattr(cdt, "BATCH_TOKENS", 20 * together.batch.ids.numel())
    found = method_of("cdt")(together)
    assert found.cost > sum(v[0].numel() for v in found.values) + 1  # several chunks
    monkeypatch.undo()
    for row, text in enumerate(texts):
        batch = subject64.tokenize([text])
        alone = Problem(subject64, mediator, batch, together.metric, together.reference)
        for ours, theirs in zip(found.values, method_of("cdt")(alone).values, strict=True):
            assert ours[row, : batch.ids.shape[1]] == pytest.approx(theirs[0], rel=1e-7, abs=1e-9)


def test_all_positions_and_chosen_nodes(rotary64):
    problem = problem_on(rotary64, [tiny.SMILES], Neurons())
    nodes = torch.tensor([[1, 2, 5], [2, 0, 3]])
    scores = method_of("cdt")(problem, nodes=nodes).values
    assert sum(int(torch.isfinite(v).sum()) for v in scores) == 2
    everywhere = method_of("cdt")(problem, by_position=False, nodes=torch.tensor([[2, -1, 3]]), share_bias=False)
    apart = method_of("cdt")(problem, nodes=torch.tensor([[2, p, 3] for p in range(7)]), share_bias=False)
    # neurons of the last layer reach the end by linear maps alone
    assert problem.batch.ids.shape[1] > 7
    rest = method_of("cdt")(
        problem, nodes=torch.tensor([[2, p, 3] for p in range(7, problem.batch.ids.shape[1])]), share_bias=False
    )
    total = apart.over_positions()[2][0, 3] + rest.over_positions()[2][0, 3]
    assert float(everywhere.values[2][0, 0, 3]) == pytest.approx(float(total), rel=1e-9)


def test_features_write_what_their_decoder_says(rotary64):
    dictionary = tiny.random_dictionary(rotary64, window=1)
    problem = problem_on(rotary64, [tiny.SMILES], Features(dictionary))
    values, _ = problem.components.record(rotary64, problem.batch)
    layer, position = 1, 3
    feature = int(values[layer][0, position, :, 0].argmax())
    assert float(values[layer][0, position, feature, 0]) > 0
    node = torch.tensor([[layer, position, feature]])
    found = method_of("cdt")(problem, nodes=node).values[layer][0, position, feature]
    written = (values[layer][0, position, feature] - problem.reference[layer][feature]) * dictionary.W_dec[layer][
        feature
    ]
    outputs = MLPs().record(rotary64, problem.batch)[0]
    reference = tuple(out - written for out in outputs)
    same = Problem(rotary64, MLPs(), problem.batch, problem.metric, reference)
    expected = method_of("cdt")(same, nodes=torch.tensor([[layer, position, 0]])).values[layer][0, position, 0]
    assert float(found) == pytest.approx(float(expected), rel=1e-9)
    with pytest.raises(SubjectError, match="features have no part"):
        cdt.cdt_edges(problem, node)
    without = Problem(rotary64, Features(dictionary, errors="drop"), problem.batch, problem.metric, problem.reference)
    with pytest.raises(SubjectError, match="not defined through a dictionary's encoder"):
        method_of("cdt")(without)
