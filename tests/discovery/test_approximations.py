"""RelP against the Jacobian of the linearised subject, EAP-IG against its definition."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

import tiny
from isotrace.base.errors import SubjectError
from isotrace.discovery.gradients import gradients
from isotrace.discovery.linear_rules import first_maps
from isotrace.discovery.methods import Problem, method_of
from isotrace.discovery.methods.relp import propagated
from isotrace.interventions import Attentions, MLPs, Residuals, mean_values
from isotrace.studies.approximations import Found, correlations, make_pairs, summary
from isotrace.subjects.frozen import FrozenSubject
from isotrace.subjects.subject import Batch

PADDED = [tiny.SMILES, "CCO"]


def problem_on(subject, texts, mediator, kind="mask", corrupt=None):
    batch = subject.tokenize(texts)
    target = tiny.make_target(kind, subject, batch)

    def metric(batch: Batch, final):
        return target.value(subject, batch, final)

    batch = target.prepare(subject, batch)
    if corrupt is None:
        return Problem(subject, mediator, batch, metric, mean_values(subject, mediator, [batch]))
    corrupt = target.prepare(subject, subject.tokenize(corrupt))
    return Problem.interchange(subject, mediator, batch, corrupt, metric)


@torch.no_grad()
def arguments(subject, batch):
    """(outputs side by side of the linear maps before the neurons, neurons) of every layer."""
    given, neurons, handles = {}, {}, []
    for layer in range(subject.n_layers):
        for module in first_maps(subject, layer):
            handles.append(module.register_forward_hook(lambda _, a, out, n=layer: given.setdefault(n, []).append(out)))
        last = subject.mlp(layer)[1]
        handles.append(last.register_forward_pre_hook(lambda _, a, n=layer: neurons.__setitem__(n, a[0])))
    subject.hidden(batch.ids, batch.mask)
    [handle.remove() for handle in handles]
    return [torch.cat(given[n], -1) for n in range(subject.n_layers)], [neurons[n] for n in range(subject.n_layers)]


def linear_mlps(subject, batch, leaves):
    """MLPs as functions of their input that are linear: every argument takes its share of f(z)/z."""
    arguments_of, neurons = arguments(subject, batch)

    def compute(layer, x):
        # within a replay the modules' own forwards are replaced
        z = torch.cat([type(m).forward(m, x) for m in first_maps(subject, layer)], -1)
        size = neurons[layer].shape[-1]
        ratios = neurons[layer].repeat(1, 1, z.shape[-1] // size) / arguments_of[layer]
        value = torch.nan_to_num(ratios) * z
        value = value.unflatten(-1, (-1, size)).mean(-2)
        weight, bias = subject.neuron_writes(layer)
        return value @ weight + (0 if bias is None else bias) + leaves[layer]

    return compute


@pytest.mark.every_family
@pytest.mark.parametrize("kind", ["mask", "probe"])
def test_relp_is_the_jacobian_of_the_linearised_subject(subject64, kind):
    problem = problem_on(subject64, [tiny.SMILES], MLPs(), kind)
    target = tiny.make_target(kind, subject64, subject64.tokenize([tiny.SMILES]))
    frozen = FrozenSubject(subject64, problem.batch)
    leaves = [torch.zeros_like(m, requires_grad=True) for m in frozen.actual.mlp_in]
    replay = frozen.replay(frozen.sources, linear_mlps(subject64, problem.batch, leaves))
    gradient, _ = target.linear(frozen)
    expected = torch.autograd.grad((replay.final[0] * gradient).sum(), leaves)
    with propagated(subject64):
        _, found = gradients(problem)
    assert float(expected[0].abs().max()) > 0
    for layer in range(subject64.n_layers):
        assert found[layer][..., 0, :] == pytest.approx(expected[layer], rel=1e-8, abs=1e-10)
    scores = method_of("relp")(problem)
    clean = problem.components.record(subject64, problem.batch)[0]
    by_hand = [((z - r)[..., 0, :] * g).sum(-1) for z, r, g in zip(clean, problem.reference, expected, strict=True)]
    assert torch.stack(scores.values)[..., 0] == pytest.approx(torch.stack(by_hand), rel=1e-7, abs=1e-9)


@pytest.mark.every_family
def test_relp_changes_no_value(subject):
    batch = subject.tokenize(PADDED)
    with torch.no_grad():
        before = subject.hidden(batch.ids, batch.mask)
        expected = subject.head(before)
        with propagated(subject):
            final = subject.hidden(batch.ids, batch.mask)
            logits = subject.head(before)
    assert torch.equal(final[batch.mask], before[batch.mask])
    assert torch.equal(logits, expected)
    assert torch.equal(subject.hidden(batch.ids, batch.mask), before)  # and nothing stays behind


@pytest.mark.every_family
@pytest.mark.parametrize("name", ["relp", "eap_ig"])
def test_a_padded_batch_scores_as_each_alone(subject64, name):
    together = problem_on(subject64, PADDED, Residuals(), "probe")
    found = method_of(name)(together).values
    for row, text in enumerate(PADDED):
        batch = subject64.tokenize([text])
        alone = Problem(subject64, Residuals(), batch, together.metric, together.reference)
        for ours, theirs in zip(found, method_of(name)(alone).values, strict=True):
            assert ours[row, : batch.ids.shape[1]] == pytest.approx(theirs[0], rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("name", ["relp", "cdt"])
def test_an_activation_that_is_not_zero_at_zero_is_refused(tmp_path, name):
    folder = tiny.save_subject(tiny.tiny_model("bert", hidden_act="sigmoid"), tmp_path)
    problem = problem_on(tiny.load_tiny(folder), [tiny.SMILES], MLPs())
    with pytest.raises(SubjectError, match=r"refuses .*layer 0 is not pointwise .* f\(0\) = 0"):
        method_of(name)(problem)


@pytest.mark.parametrize("mediator", [MLPs(), Attentions(), Residuals()])
def test_integrated_gradients_of_a_layer_are_complete(rotary64, mediator):
    """Its scores sum to what setting all of the layer to the reference takes away."""
    problem = problem_on(rotary64, PADDED, mediator)
    scores = {n: method_of("eap_ig")(problem, n_steps=n).values for n in (2, 32)}
    for layer, reference in enumerate(problem.reference):

        def edit(at, values, layer=layer, reference=reference):
            return reference.expand_as(values) if at == layer else values

        with problem.components.edited(rotary64, edit):
            final = rotary64.hidden(problem.batch.ids, problem.batch.mask)
        fall = problem.value() - problem.metric(problem.batch, final)
        miss = {n: float((v[layer].sum((1, 2)) - fall).abs().max()) for n, v in scores.items()}
        assert miss[32] < 1e-2 * float(fall.abs().max())
        assert miss[32] < 0.02 * miss[2] or miss[2] < 1e-9  # midpoints: the error falls with the square of the steps


def test_integrated_gradients_between_inputs(folders, double):
    """Against transformers' own model, given the interpolated embeddings."""
    subject = tiny.in_float64(tiny.load_tiny(folders["bert"]))
    problem = problem_on(subject, ["CCOCC", "CCNCC"], MLPs(), corrupt=["NCCCN", "OCNCC"])
    table = subject.model.bert.embeddings.word_embeddings.weight
    total = [0.0] * subject.n_layers
    for share in (1 / 6, 3 / 6, 5 / 6):
        embeds = ((1 - share) * table[problem.corrupt.ids] + share * table[problem.batch.ids]).requires_grad_(True)
        outputs = []
        keep = lambda _, args, out, outputs=outputs: outputs.append(out)  # noqa: E731
        handles = [block.output.dense.register_forward_hook(keep) for block in subject.model.bert.encoder.layer]
        final = subject.model.bert(inputs_embeds=embeds, attention_mask=problem.batch.mask.long()).last_hidden_state
        [handle.remove() for handle in handles]
        slopes = torch.autograd.grad(problem.metric(problem.batch, final).sum(), outputs)
        total = [t + s / 3 for t, s in zip(total, slopes, strict=True)]
    clean = MLPs().record(subject, problem.batch)[0]
    found = method_of("eap_ig")(problem, n_steps=3).values
    for layer, slope in enumerate(total):
        expected = ((clean[layer] - problem.reference[layer])[..., 0, :] * slope).sum(-1)
        assert found[layer][..., 0] == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_inputs_masked_at_different_places_are_refused_where_masks_scale_embeddings(folders):
    subject = tiny.load_tiny(folders["esm-token-dropout"])
    problem = problem_on(subject, ["CCOCC"], MLPs(), corrupt=["NCCCN"])
    assert method_of("eap_ig")(problem).cost == 18
    other = replace(problem, corrupt=subject.tokenize(["NCCCN"]))
    with pytest.raises(SubjectError, match="mask clean and corrupt input at the same places"):
        method_of("eap_ig")(other)


def test_bad_settings(rotary):
    problem = problem_on(rotary, [tiny.SMILES], MLPs())
    with pytest.raises(ValueError, match="at least one step"):
        method_of("eap_ig")(problem, n_steps=0)


def test_the_study_correlates_over_nodes_and_shuffles_for_its_null():
    generator = np.random.default_rng(0)
    exact, other = Found(), Found()
    for n in (60, 80, 70):
        scores = generator.standard_normal(n)
        read = np.arange(n) < 10
        exact.scores.append(scores)
        exact.read.append(read)
        other.scores.append(np.where(read, 5.0, -1.0) * scores**3)  # monotone, in turn up and down
    row = summary(exact, other, seed=0)
    by_hand = [scipy.stats.pearsonr(x, y)[0] for x, y in zip(exact.scores, other.scores, strict=True)]
    assert row["pearson"] == pytest.approx(np.mean(by_hand))
    by_hand = [scipy.stats.spearmanr(x, y)[0] for x, y in zip(exact.scores, other.scores, strict=True)]
    assert row["spearman"] == pytest.approx(np.mean(by_hand))
    assert row["spearman_elsewhere"] == pytest.approx(-1)
    assert row["pearson_ci"][0] <= row["pearson"] <= row["pearson_ci"][1]
    assert row["pearson_null_ci"][0] < 0 < row["pearson_null_ci"][1]
    assert row["spearman_null_ci"][0] < 0 < row["spearman_null_ci"][1]
    assert (row["reactions"], row["nodes"]) == (3, 210)
    assert np.isnan(correlations(np.ones(5), np.arange(5.0))).all()


def test_the_study_pairs_reactions_of_equal_length(folders):
    subject = tiny.load_tiny(folders["bert"])
    reactions = ["CCO>>CO", "CCN>>CN", "c1cc[nH]c1>>CO", "CCO>>CC=O"]
    subject.tokenizer.add_tokens([">>", ">"])
    subject.model.resize_token_embeddings(len(subject.tokenizer))
    pairs = make_pairs(subject, reactions, 10, 20, seed=0)
    assert {pair.clean.sequences[0] for pair in pairs} <= set(reactions)
    assert len(pairs) >= 2
    for pair in pairs:
        text, place = pair.clean.sequences[0], pair.place
        assert pair.clean.ids.shape == pair.corrupt.ids.shape
        assert pair.corrupt.sequences != pair.clean.sequences
        assert text.index(">>") < pair.clean.offsets[0][place][0]  # an atom of the product
        for batch in (pair.clean, pair.corrupt):
            assert int(batch.ids[0, place]) == subject.mask_id
        assert subject.tokens(torch.tensor([pair.target.positive]))[0] == text[slice(*pair.clean.offsets[0][place])]
