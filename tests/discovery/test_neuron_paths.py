"""Paths of neurons: a chain through three layers that was written by hand, beside decoys."""

import pytest
import torch

from isotrace.base.errors import InputError, SubjectError
from isotrace.discovery.methods import Problem, method_of
from isotrace.interventions import MLPs, Neurons
from isotrace.studies.effects.neuron_paths import chosen
from isotrace.studies.planted import kept
from isotrace.studies.worlds.planted_weights import Weights

neuron_paths = method_of("neuron_paths")


def made(folder, beside):
    """N → first → second → answer, by the neurons 3, 2 and 3 of the three layers, beside others as active that write
    what nobody reads. `beside`: neuron 4 of the first layer writes an answer of its own, of a quarter that length."""
    w = Weights(["token N", "token C", "first", "second", "answer", "junk", "junk 2"])
    w.detectors(0, [("token N", "junk"), ("token C", "junk"), ("token N", "junk 2"), ("token N", "first")])
    if beside:
        w.neuron(0, {"token N": 20}, -20, "answer", 0.5)
    w.detectors(1, [("token N", "junk"), ("first", "junk 2"), ("first", "second")])
    w.detectors(2, [("token N", "junk"), ("second", "junk"), ("first", "junk"), ("second", "answer")])
    subject = w.load(folder)
    direction = w["answer"]
    clean, corrupt = subject.tokenize(["CNCC", "NCCN"]), subject.tokenize(["CCCC", "CCCC"])
    metric = lambda _, final: (final @ direction).sum(1)  # noqa: E731
    return Problem.interchange(subject, Neurons(), clean, corrupt, metric)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return made(tmp_path_factory.mktemp("chain"), False)


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    return made(tmp_path_factory.mktemp("beside"), True)


def path_of(scores):
    return [int(layer.sum((0, 1)).abs().argmax()) for layer in scores.values]


def mask_of(problem, path):
    return torch.cat([
        torch.arange(n) == component
        for component, (n, _) in zip(path, problem.components.sizes(problem.subject), strict=True)
    ])  # fmt: skip


def test_the_chain_is_the_path(chain):
    scores = neuron_paths(chain, n_steps=4)
    assert path_of(scores) == [3, 2, 3]
    assert bool((kept(chain, mask_of(chain, (3, 2, 3))) > 0.99 * chain.value().detach().numpy()).all())
    assert path_of(neuron_paths(chain, n_steps=4, joint="published"))[2] == 3


def test_an_effect_of_its_own_is_preferred_to_the_start_of_a_chain(beside):
    path = path_of(neuron_paths(beside, n_steps=4))
    assert (path[0], path[2]) == (4, 3)
    whole = beside.value().detach().numpy()
    falls = [float((whole - kept(beside, ~mask_of(beside, p))).mean()) for p in (path, (3, 2, 3))]
    assert falls[0] > 1.2 * falls[1], "and rightly, by what removing the two takes away"


def test_the_integral_is_what_removing_the_path_takes_away(beside):
    scores = neuron_paths(beside, n_steps=20)
    removed = beside.value().detach().numpy() - kept(beside, ~mask_of(beside, path_of(scores)))
    found = torch.cat([*scores.values], 2).sum((1, 2))
    assert found.tolist() == pytest.approx(removed.tolist(), rel=0.02)
    product = torch.cat([*neuron_paths(beside, joint="published", n_steps=20).values], 2).sum((1, 2))
    assert float((product / found).min()) > 2, "the published product is no part of the metric"


def test_more_paths_are_never_worse(chain):
    of = [sum(float(layer.sum()) for layer in neuron_paths(chain, n_steps=4, beam=b).values) for b in (1, 5)]
    assert of[1] >= of[0] > 0


def test_sets_of_the_study_are_as_large_as_the_path(chain):
    sets = chosen(chain, 2, 0)
    assert {int(keep.sum()) for each in sets.values() for keep in each} == {3}
    for name in set(sets) - {"free"}:
        per_layer = [part.sum() for keep in sets[name] for part in keep.split(32)]
        assert {int(n) for n in per_layer} == {1}, name
    assert len(sets["random"]) > 1


def test_it_says_what_it_cannot_do(chain):
    with pytest.raises(InputError, match="integral or published"):
        neuron_paths(chain, joint="sum")
    with pytest.raises(InputError, match="at least 1"):
        neuron_paths(chain, beam=0)
    whole = Problem.interchange(chain.subject, MLPs(), chain.batch, chain.corrupt, chain.metric)
    with pytest.raises(SubjectError, match="one of several"):
        neuron_paths(whole)
