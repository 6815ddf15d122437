"""The learned mask: planted parts are found whatever they are parts of."""

from typing import Any

import pytest
import torch

import tiny
import tiny_tasks
from isotrace.dictionaries.features import Features
from isotrace.discovery.tasks import mask
from isotrace.discovery.tasks.basis import Basis
from isotrace.discovery.tasks.ranking import rank
from isotrace.discovery.tasks.readout import Readout
from isotrace.interventions import Heads, Neurons

PLANTED = ((0, 3), (0, 17), (2, 8), (2, 9), (2, 20))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(subject, data, readout): of all neurons only PLANTED write more than next to nothing."""
    model = tiny.tiny_model("bert", hidden_act="relu").eval()
    generator = torch.Generator().manual_seed(0)
    blocks: Any = model.get_submodule("bert.encoder.layer")
    for layer, block in enumerate(blocks):
        weight = block.output.dense.weight.data  # [d_model, neurons]
        weight.mul_(0.01)
        for at, neuron in PLANTED:
            if at == layer:
                weight[:, neuron] = 0.7 * torch.randn(len(weight), generator=generator)
                block.intermediate.dense.bias.data[neuron] = 3.0  # it fires
    subject = tiny.load_tiny(tiny.save_subject(model, tmp_path_factory.mktemp("mask") / "subject"))
    texts = [text for text, _ in tiny_tasks.molecules(48)]
    data = tiny_tasks.plain_task(subject, texts, [float(len(text)) for text in texts])
    weight = torch.randn(subject.d_model, 1, generator=generator)
    return subject, data, Readout(subject, "regression", "spearman", weight, torch.zeros(1))


def bases(subject):
    """Neurons, and a dictionary that is the same neurons under other names."""
    return {"neurons": Basis(subject, Neurons()), "features": Basis(subject, Features(tiny.exact_dictionary(subject)))}


@pytest.mark.parametrize("name", ["neurons", "features"])
def test_planted_parts_rank_first(world, name):
    subject, data, readout = world
    basis = bases(subject)[name]
    batches = [batch for _, batch in data.batches("discover", 4_096, subject)]
    nothing_known = torch.randperm(basis.n, generator=torch.Generator().manual_seed(1)).double()
    scores = mask.learned(basis, readout, data, basis.statistics(batches), nothing_known, steps=220)
    assert scores.shape == (basis.n,)
    first = scores.argsort(descending=True)[: len(PLANTED)].tolist()
    wanted = {layer * basis.sizes[0] + neuron for layer, neuron in PLANTED}
    assert set(first) == wanted


def test_every_kind_of_parts_has_one_and_the_same_seed_gives_the_same(world, monkeypatch):
    subject, data, readout = world
    monkeypatch.setattr(mask, "STEPS", 3)
    basis = Basis(subject, Heads())
    statistics = basis.statistics([batch for _, batch in data.batches("discover", 4_096, subject)])
    one, two = (rank("learned_mask", basis, readout, data, statistics) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (basis.n,)


def test_the_mask_is_hard_and_its_slope_is_not():
    scores = torch.tensor([-1.0, 0.3, 0.1, 2.0], requires_grad=True)
    made = mask.straight_through(scores, 2)
    assert made.tolist() == pytest.approx([0, 1, 0, 1])
    assert mask.straight_through(scores, 4).tolist() == pytest.approx([1, 1, 1, 1])
    (slope,) = torch.autograd.grad(made.sum(), [scores])
    assert float(slope.min()) > 0
    assert slope.argsort(descending=True).tolist()[:2] in ([1, 2], [2, 1]), "steepest at the threshold"
