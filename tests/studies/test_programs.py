"""Subjects with a known program: they run it, by its edges, and it can be read out of them."""

import numpy as np
import pytest
import torch

from isotrace.discovery.methods import method_of
from isotrace.interventions.edges import component_graph
from isotrace.studies.planted import kept
from isotrace.studies.worlds.planted_problems import effects_of, problem_of, truth_of
from isotrace.studies.worlds.program_builder import CLS, Builder
from isotrace.studies.worlds.program_edges import aurocs, edge_scores
from isotrace.studies.worlds.program_readout import read_out
from isotrace.studies.worlds.programs import PROGRAMS, compiled, programs, words


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {p.planted.name: p for p in programs(tmp_path_factory.mktemp("programs"), 24, 5)}


@pytest.fixture(params=PROGRAMS)
def program(request, made):
    return made[request.param]


def test_the_subject_runs_its_program(program):
    batch = program.planted.subject.tokenize(program.inputs(200, 1))
    assert program.predicted(batch) == program.said(batch)
    sides = [program.said(side) for side in (program.planted.clean, program.planted.corrupt)]
    assert all(a != b for a, b in zip(*sides, strict=True))
    assert set(sides[0]) == set(program.answers)


def test_its_edges_alone_are_enough_and_every_one_is_needed(program):
    problem, truth = problem_of(program.planted, "edge", "corrupt"), truth_of(program.planted, "edge")
    full, empty = (kept(problem, keep).mean() for keep in (torch.ones_like(truth), torch.zeros_like(truth)))
    assert kept(problem, truth).mean() == pytest.approx(full, rel=0.01)
    assert abs(empty) < 0.1 * full
    for edge in truth.nonzero()[:, 0].tolist():
        without = truth.clone()
        without[edge] = False
        assert kept(problem, without).mean() < 0.99 * full, component_graph(problem.subject).name(edge)


def test_path_patching_ranks_its_edges_first(program):
    problem, truth = problem_of(program.planted, "edge", "corrupt"), truth_of(program.planted, "edge").numpy()
    method = method_of("path_patching")
    scores = edge_scores(method, problem, np.abs(effects_of(method, problem)[0]).mean(0, keepdims=True))
    assert aurocs(scores, truth)[0] > 0.97


def test_the_program_is_read_out_of_its_heads_and_tables(program):
    run = compiled(read_out(program, program.planted.edges, program.inputs(300, 1)))
    subject = program.planted.subject
    batch = subject.tokenize(program.inputs(300, 2))
    got = [run(tokens) for tokens in words(subject, batch)]
    unseen = [g == "?" for g in got]
    assert np.mean(unseen) < 0.05
    assert [g for g, no in zip(got, unseen, strict=True) if not no] == [
        s for s, no in zip(program.said(batch), unseen, strict=True) if not no
    ]


def test_nothing_is_read_out_of_no_edges(made):
    text = read_out(made["halogen"], [], made["halogen"].inputs(50, 1))
    assert compiled(text)(["C", "F"]) in made["halogen"].answers
    assert "head" not in text


def test_a_selector_is_counted(tmp_path):
    names = ["0", "1", "2", "3"]
    b = Builder({"token": [CLS, *"CN"], "position": [str(p) for p in range(8)], "found": names}, ["found share"])
    b.selector_width(0, b.select("token", "token", lambda q, k: (q, k) == ("C", "N")), "found")
    subject = b.weights.load(tmp_path / "counted")
    for text in ("CCCCC", "CCNCC", "NCNCC", "NNNCC", "NNNNC"):
        final = subject.run(subject.tokenize([text])).final[0, -2]
        lengths = [float(final @ b.weights[f"found {name}"]) for name in names]
        expected = [2.0 * (min(text.count("N"), 3) == n) for n in range(4)]
        assert lengths == pytest.approx(expected, abs=0.05), text


def test_auroc_counts_ties_half():
    truth = np.array([True, False, True, False])
    assert aurocs(np.array([[4.0, 1, 3, 2], [0, 0, 0, 0], [1, 2, 0, 3]]), truth).tolist() == [1, 0.5, 0]
