"""The bases of the basis question on a tiny subject: groups with what they leave, and all principal components, are the
neurons; neurons touched; a planted circuit of neurons is the smallest, and the verdict says so."""

import numpy as np
import pytest
import torch

import tiny
import tiny_tasks
from isotrace.base.work import Memo
from isotrace.dictionaries.features import Features
from isotrace.discovery.tasks.basis import Basis
from isotrace.discovery.tasks.choice import halves
from isotrace.discovery.tasks.readout import Readout
from isotrace.interventions import Neurons
from isotrace.studies.features import basis_question as question
from isotrace.studies.features.neuron_groups import Tokens, explained, row

PLANTED = ((0, 3), (2, 8))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(subject, data, readout): two neurons write, the others next to nothing."""
    model = tiny.tiny_model("bert", hidden_act="relu").eval()
    generator = torch.Generator().manual_seed(0)
    for layer in range(tiny.N_LAYERS):
        weight = model.get_submodule(f"bert.encoder.layer.{layer}.output.dense").weight.data  # pyright: ignore
        weight.mul_(0.01)  # pyright: ignore
        for at, neuron in PLANTED:
            if at == layer:
                weight[:, neuron] = 0.7 * torch.randn(len(weight), generator=generator)  # pyright: ignore
                bias = model.get_submodule(f"bert.encoder.layer.{layer}.intermediate.dense").bias
                bias.data[neuron] = 3.0  # pyright: ignore
    subject = tiny.load_tiny(tiny.save_subject(model, tmp_path_factory.mktemp("question") / "subject"))
    texts = [text for text, _ in tiny_tasks.molecules(32)]
    weight = torch.randn(subject.d_model, 1, generator=generator)
    plain = tiny_tasks.plain_task(subject, texts, [0.0] * len(texts))
    readout = Readout(subject, "regression", "spearman", weight, torch.zeros(1))
    with torch.no_grad():
        told = [
            float(readout.outputs([e], b, subject.hidden(b.ids, b.mask)))
            for e in plain.parts["report"]
            for b in [subject.tokenize([e.text])]
        ]
    texts = [e.text for e in plain.parts["report"]]
    return subject, tiny_tasks.plain_task(subject, texts, told), readout


@pytest.fixture(scope="module")
def bases(world):
    subject, data, _ = world
    x = question.neurons_of(subject, data, 300)
    groups = question.grouped(subject, x, 4, 0, restarts=2, seeds=2, iterations=20)
    return {
        "neurons": Basis(subject, Neurons()),
        "groups": Basis(subject, Features(groups)),
        "mixed": Basis(subject, question.Mixed.of(groups)),
        "pca": Basis(subject, question.principal(subject, x, 24)),
    }


@pytest.mark.parametrize("name", ["mixed", "pca"])
def test_all_of_them_together_are_the_neurons(world, bases, name):
    subject, data, _ = world
    ((_, batch),) = data.batches("report", 10_000, subject)
    basis = bases[name]
    statistics = basis.statistics([batch])
    kept = basis.kept(batch, tiny_tasks.everything(basis), statistics)
    torch.testing.assert_close(kept, subject.hidden(batch.ids, batch.mask), rtol=1e-3, atol=1e-4)
    nothing = basis.kept(batch, tiny_tasks.nothing(basis), statistics)
    neurons = bases["neurons"]
    empty = neurons.kept(batch, tiny_tasks.nothing(neurons), neurons.statistics([batch]))
    torch.testing.assert_close(nothing, empty, rtol=1e-3, atol=1e-3)


def test_neurons_touched_are_those_with_a_weight(world, bases):
    n = 24
    first = torch.tensor([0, 1])
    assert question.touched(bases["neurons"], bases["neurons"].split(first)) == 2
    assert question.touched(bases["pca"], bases["pca"].split(first)) == n
    one = bases["groups"].components.dictionary.W_dec[0][:2]
    assert question.touched(bases["groups"], bases["groups"].split(first)) == int((one != 0).any(0).sum())
    last = torch.tensor([4 + n - 1])  # of the first layer, behind its groups
    assert question.touched(bases["mixed"], bases["mixed"].split(last)) == 1
    other = Basis(world[0], Features(tiny.exact_dictionary(world[0])))
    assert np.isnan(question.touched(other, other.split(first)))


def test_a_planted_circuit_of_neurons_is_the_smallest(world, bases, monkeypatch, tmp_path):
    _, data, readout = world
    monkeypatch.setattr(question, "MASK_STEPS", 60)
    setting = question.Setting(True, tmp_path, 0, lambda items, _: items, {})
    memo = Memo(None)
    found = halves(readout, data, 0, memo)[:2]
    few = {name: bases[name] for name in ("neurons", "pca")}
    every = list(question.candidates(readout, data, few, found, setting, memo, 20))
    tables = question.compared("planted", every, found, (1, 2, 3, 20), 3, 0)
    chosen = {row["basis"]: row for row in tables["chosen"] if row["level"] == 90 and row["method"] == "learned_mask"}
    assert chosen["neurons"]["n"] <= len(PLANTED)
    assert chosen["neurons"]["kept"] > 0.9
    assert chosen["neurons"]["random_ci"][1] < chosen["neurons"]["kept"]
    equal = [row for row in tables["circuits"] if (row["basis"], row["method"]) == question.BAR]
    assert all(row["minus_bar_equal_parts"] == row["minus_bar_equal_neurons"] == 0 for row in equal)
    assert {row["touched"] for row in tables["circuits"] if row["basis"] == "pca" and row["n"] == 1} == {24.0}
    said = question.verdict(tables["chosen"])
    assert f"neurons by learned mask ({chosen['neurons']['n']}, which keep" in said


def test_energy_and_recurrence_of_groups_are_told_beside_an_svd():
    generator = torch.Generator().manual_seed(0)
    truth = torch.block_diag(*torch.randn(4, 10, 1, generator=generator))

    def drawn(n):
        a = torch.rand(n, 4, generator=generator) * (torch.rand(n, 4, generator=generator) < 0.3)
        return Tokens(a @ truth.T, [str(i // 5) for i in range(n)])

    train, held = drawn(600), drawn(600)
    found = row(train, held, 4, 0.25, "nothing", 2, 80, 0)
    assert found["energy"] > 0.99
    assert found["svd"] > 0.999
    assert found["recur_held_out"] == found["recur_80"] == 1
    share, ends = explained(0.5 * held.x, held, 0)
    assert share == pytest.approx(0.75)
    assert ends == pytest.approx((0.75, 0.75))
