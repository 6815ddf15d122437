"""In-context regression: the closed form has the published figures, and the engine sees what the closed form says."""

import pytest
import torch

from isotrace.discovery.methods import method_of
from isotrace.studies.worlds.regression import Tasks, regression, scaled_error, tasks
from isotrace.subjects.dispatch import patterns_recorded

GAMMA, MU = 0.3, 0.7


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return regression(tmp_path_factory.mktemp("regression"), GAMMA, MU)


@pytest.fixture(scope="module")
def many():
    return tasks(8_000, 0)


@pytest.mark.parametrize(("gamma", "apart"), [(0.01, 1e-4), (0.1, 0.013), (0.3, 0.09)])
def test_two_heads_become_a_debiased_step_as_gamma_falls(many, gamma, apart):
    double = Tasks(*(getattr(many, name).double() for name in ("x", "y", "query", "target")))
    heads, step = double.contributions(gamma, 1.0).sum(-1), 2 * gamma * double.step()
    assert float((heads - step).norm() / step.norm()) == pytest.approx(apart, rel=0.5 if gamma == 0.01 else 0.1)


def test_errors_are_the_published_ones_and_ridge_is_far_better(many):
    heads = many.contributions(0.1, 1.0).sum(-1)
    one = (many.patterns(0.3)[0] * many.y).sum(-1)
    assert scaled_error(heads, many.target) == pytest.approx(0.134, abs=0.008)
    assert scaled_error(many.step(), many.target) == pytest.approx(0.135, abs=0.008)
    assert scaled_error(one, many.target) == pytest.approx(0.330, abs=0.02)
    assert float(((many.ridge(0.05) - many.target) ** 2).mean()) == pytest.approx(0.0016, abs=0.0003)


def test_attention_and_prediction_are_those_of_the_closed_form(world):
    some = tasks(6, 1)
    with torch.no_grad(), world.given(world.stream(some)), patterns_recorded(world.subject) as seen:
        batch = world.batch(6, 40)
        predicted = world.metric(batch, world.subject.run(batch, logits=False).final)
    attended = seen[world.subject.attentions[0]][:, :2, -2, 1:-2]
    torch.testing.assert_close(
        attended, torch.stack(some.patterns(GAMMA), 1), rtol=1e-3, atol=1e-5
    )  # float32 beside a long anchor
    expected = some.contributions(GAMMA, MU).sum(-1)
    torch.testing.assert_close(predicted, expected, rtol=1e-3, atol=1e-4)


def test_gradients_at_the_inputs_are_those_of_the_closed_form(world):
    some = tasks(4, 2)
    y, query = some.y.clone().requires_grad_(True), some.query.clone().requires_grad_(True)
    with world.given(world.stream(Tasks(some.x, y, query, some.target))):
        batch = world.batch(4, 40)
        predicted = world.metric(batch, world.subject.hidden(batch.ids, batch.mask))
    by_label, by_query = torch.autograd.grad(predicted.sum(), (y, query))
    torch.testing.assert_close(by_label, some.contributions(GAMMA, MU) / some.y, rtol=5e-3, atol=1e-5)
    torch.testing.assert_close(by_query, some.query_gradient(GAMMA, MU), rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["attribution_patching", "activation_patching", "eap_ig"])
def test_methods_give_each_head_its_share(world, name):
    some = tasks(5, 3)
    with world.given(world.stream(some)):
        values = method_of(name)(world.problem(some)).over_positions()[0]
    positive, negative = (MU * (p * some.y).sum(-1) for p in some.patterns(GAMMA))
    expected = torch.stack([positive, -negative, 0 * positive, 0 * positive], 1)
    torch.testing.assert_close(values.detach(), expected, rtol=5e-3, atol=1e-3)


def test_key_and_query_are_diagonal_and_what_is_moved_sums_to_zero(world):
    attention = world.subject.model.esm.encoder.layer[0].attention
    axes = torch.stack([world.directions[f"x {i}"] for i in range(5)])
    label, answer = world.directions["label"], world.directions["answer"]
    moved = []
    for head, sign in enumerate((1, -1)):
        rows = slice(32 * head, 32 * head + 32)
        query, key, value = (getattr(attention.self, part).weight[rows].detach() for part in ("query", "key", "value"))
        product = (axes @ query.T) @ (key @ axes.T) / 32**0.5
        torch.testing.assert_close(product, sign * GAMMA * torch.eye(5), rtol=1e-4, atol=1e-5)
        moved.append(float(answer @ attention.output.dense.weight.detach()[:, rows] @ (value @ label)))
    assert moved == pytest.approx([MU, -MU], rel=1e-4)
