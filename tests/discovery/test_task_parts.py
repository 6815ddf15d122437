"""Task circuits of heads and other components, rankings by any method, pruning, and what is kept between runs."""

import numpy as np
import pytest
import torch

import tiny
import tiny_tasks
from isotrace.base.errors import InputError, SubjectError
from isotrace.base.work import Memo, claimed
from isotrace.dictionaries.features import Features
from isotrace.discovery.methods import METHODS, Problem
from isotrace.discovery.tasks.basis import Basis
from isotrace.discovery.tasks.ranking import rank
from isotrace.discovery.tasks.readout import Readout
from isotrace.interventions import Heads, MLPs

TEXTS = ("CCOCC", "CC(=O)N", "c1ccccc1", "OC=O")


@pytest.fixture
def planted(subject):
    """(subject, data, readout, batch) of a regression on four molecules with a random probe."""
    data = tiny_tasks.plain_task(subject, TEXTS, [0.3, -1.0, 2.0, 0.1])
    weight = torch.randn(subject.d_model, 1, generator=torch.Generator().manual_seed(3))
    readout = Readout(subject, "regression", "spearman", weight, torch.zeros(1))
    return subject, data, readout, data.batches("report", 4_096, subject)[0][1]


@pytest.mark.parametrize("mediator", [Heads(), MLPs()], ids=lambda m: m.name)
def test_all_parts_kept_or_none_removed_is_the_subject(planted, mediator):
    subject, _, _, batch = planted
    basis = Basis(subject, mediator)
    statistics = basis.statistics([batch])
    clean = subject.hidden(batch.ids, batch.mask)
    for found in (
        basis.kept(batch, tiny_tasks.everything(basis), statistics),
        basis.removed(batch, tiny_tasks.nothing(basis), statistics),
    ):
        torch.testing.assert_close(found, clean, rtol=1e-4, atol=1e-5)  # by other kernels
    assert not torch.allclose(basis.kept(batch, tiny_tasks.nothing(basis), statistics), clean, atol=1e-3)


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if m.ranks == "node"])
def test_every_method_for_nodes_ranks_heads_or_says_why_not(planted, name):
    subject, data, readout, batch = planted
    basis = Basis(subject, Heads())
    statistics = basis.statistics([batch])
    batches = data.batches("discover", 4_096, subject)
    problem = Problem(subject, Heads(), batches[0][1], lambda _, final: final.sum((1, 2)), statistics.mean)
    if METHODS[name].refuse(problem):
        with pytest.raises(SubjectError, match="refuses"):
            rank(name, basis, readout, data, statistics)
        return
    scores = rank(name, basis, readout, data, statistics)
    assert scores.shape == (basis.n,)
    assert bool(scores.isfinite().all())
    assert float(scores.abs().max()) > 0


def test_the_exact_ranking_is_the_fall_of_the_surrogate(planted):
    subject, data, readout, _ = planted
    basis = Basis(subject, Heads())
    batches = data.batches("discover", 4_096, subject)
    statistics = basis.statistics([batch for _, batch in batches])
    scores = rank("activation_patching", basis, readout, data, statistics)
    examples = data.parts["discover"]
    share = torch.from_numpy(readout.coefficients(examples)).float()

    def value(remove):
        outputs = [
            readout.outputs([examples[i] for i in rows], batch, basis.removed(batch, remove, statistics))
            for rows, batch in batches
        ]
        return float((torch.cat(outputs) * share).sum())

    clean = value(tiny_tasks.nothing(basis))
    falls = torch.tensor([clean - value(basis.split(torch.tensor([part]))) for part in range(basis.n)])
    assert tiny.relative(scores.float(), falls) < 1e-3


def test_edges_rank_no_parts(planted):
    subject, data, readout, batch = planted
    basis = Basis(subject, Heads())
    with pytest.raises(InputError, match="ranks edges"):
        rank("path_patching", basis, readout, data, basis.statistics([batch]))


def test_pruning_is_repeated_halving(planted):
    """The better half of the first scores fills the first half of the order; within it, scores are taken anew with
    the other half at its mean."""
    subject, data, readout, batch = planted
    basis = Basis(subject, Features(tiny.random_dictionary(subject)))
    statistics = basis.statistics([batch])
    order = rank("pruning", basis, readout, data, statistics).argsort(descending=True)
    assert sorted(order.tolist()) == list(range(basis.n))
    first = rank("attribution_patching", basis, readout, data, statistics).argsort(descending=True, stable=True)
    half = basis.n // 2
    assert set(order[:half].tolist()) == set(first[:half].tolist())
    assert order[half:].tolist() == first[half:].tolist()
    assert order[:half].tolist() != first[:half].tolist()


def test_what_was_computed_is_not_computed_again(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return np.arange(3.0)

    with claimed(tmp_path) as work:
        memo = Memo(work, "settings")
        assert memo("a", compute).tolist() == memo("a", compute).tolist() == [0, 1, 2]
        assert len(calls) == 1
        Memo(work, "other settings")("a", compute)
        memo("b", compute)
        assert len(calls) == 3
    next(tmp_path.glob("*.npy")).write_bytes(b"\x93NUMPY cut off")
    with claimed(tmp_path) as work:
        for key in ("a", "b"):
            Memo(work, "settings")(key, compute)
        Memo(work, "other settings")("a", compute)
    assert len(calls) == 4
    assert Memo(None)("a", compute).tolist() == [0, 1, 2]
    assert len(calls) == 5
