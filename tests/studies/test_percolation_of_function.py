"""Activity on graphs: small graphs by hand, random ones against the closed forms (METHODS_DYNAMICS §1)."""

import itertools
import time

import numpy as np
import pytest
from scipy.sparse import csr_array

import tiny
from isotrace.dictionaries.features import Features
from isotrace.steering.states import flowing
from isotrace.studies import STUDIES, Setting
from isotrace.studies.percolation import functional_percolation
from isotrace.studies.percolation.functional_percolation import Sizes, graph_row
from isotrace.studies.percolation.observables import (
    cascades_possible,
    closed_forms,
    depends,
    front,
    functions,
    giant_share,
    hypervolume,
    is_or,
    transfer_entropy,
    tree_depth,
)
from isotrace.studies.percolation.of_circuits import truth_table
from isotrace.studies.percolation.spread import all_patterns, random_graph, spread


def graph_of(n, *edges):
    matrix = np.zeros((n, n), np.float32)
    for a, b in edges:
        matrix[a, b] = matrix[b, a] = 1
    return csr_array(matrix)


def test_a_random_graph_has_its_degree_and_no_loops():
    graph = random_graph(3_000, 4.0, np.random.default_rng(0))
    degree = np.asarray(graph.sum(1))
    assert abs(degree.mean() - 4) < 3 * np.sqrt(2 * 4 / 3_000)
    assert abs(degree.var() - 4) < 0.5  # Poisson
    assert graph.diagonal().sum() == 0
    assert (graph != graph.T).nnz == 0
    assert graph.max() == 1


def test_two_nodes_and_a_path():
    clamped, start = all_patterns([np.array([0])], 2)
    found = spread(graph_of(2, (0, 1)), clamped, start, 0.5)
    assert found.table.tolist() == [[False, True], [False, True]]
    # a path of four whose two ends are inputs: each inner node needs one of two neighbours
    clamped, start = all_patterns([np.array([0]), np.array([3])], 4)
    path = graph_of(4, (0, 1), (1, 2), (2, 3))
    either = spread(path, clamped, start, 0.5).table
    assert either[1].tolist() == either[2].tolist() == [False, True, True, True]
    both = spread(path, clamped, start, 0.6).table
    assert not both[1:3].any()  # one neighbour is not enough, and the other never turns on
    star = spread(graph_of(4, (0, 1), (3, 1)), clamped, start, 0.6).table
    assert star[1].tolist() == [False, False, False, True]
    assert star[2].tolist() == [False] * 4  # without neighbours


def test_a_threshold_that_is_a_whole_number_of_neighbours_is_reached():
    clamped, start = all_patterns([np.arange(3)], 31)
    hub = graph_of(31, *((30, i) for i in range(30)))
    assert spread(hub, clamped, start, 0.1).table[30, 1]  # 0.1 · 30 is a rounding above 3
    assert not spread(hub, clamped, start, 0.11).table[30, 1]


def test_an_inverting_node_is_on_until_enough_are():
    clamped, start = all_patterns([np.array([0])], 3)
    phi = np.array([0.5, 0.9, 0.5])  # the inverting one in the middle goes off when both others are on
    found = spread(graph_of(3, (0, 1), (1, 2)), clamped, start, phi, np.array([False, True, False]))
    assert found.settled.all()
    assert found.table[1].tolist() == [True, False]
    assert found.table[2].tolist() == [True, True]  # once on, it stays
    taking_turns = spread(graph_of(3, (0, 1), (1, 2)), clamped, start, 0.9, np.array([False, True, True]))
    assert not taking_turns.settled.all()


def test_functions_of_a_table():
    patterns = np.arange(8)
    a, b, c = ((patterns >> i) & 1 == 1 for i in range(3))
    table = np.stack([a | b, a & b, a ^ b ^ c, np.zeros(8, bool), np.ones(8, bool), np.where(a, b, c), a | b])
    assert depends(table).sum(1).tolist() == [2, 2, 3, 0, 0, 3, 2]
    assert is_or(table).tolist() == [True, False, False, True, False, False, True]
    assert [tree_depth(row) for row in table] == [2, 2, 3, 0, 0, 2, 2]  # a selector asks for two
    kinds, which = functions(table)
    assert len(kinds) == 6
    assert (kinds[which] == table).all()


def test_the_depth_of_an_or_is_the_number_of_its_inputs():
    for k in range(1, 6):
        assert tree_depth([pattern > 0 for pattern in range(2**k)]) == k


def test_the_giant_component_solves_its_equation():
    for z in (1.0001, 1.6, 2.0, 4.0):
        assert giant_share(z) == pytest.approx(1 - np.exp(-z * giant_share(z)), abs=1e-9)
    assert giant_share(0.7) == 0
    assert [round(giant_share(z), 3) for z in (1.6, 2.0, 2.5, 4.0)] == [0.642, 0.797, 0.893, 0.980]
    assert [round(closed_forms(z, 5)["complexity"], 2) for z in (1.6, 2.0, 2.5, 4.0)] == [2.06, 3.17, 3.98, 4.8]
    assert [round(closed_forms(z, 5)["entropy"], 3) for z in (1.6, 2.0, 2.5, 4.0)] == [0.331, 0.292, 0.252, 0.210]


@pytest.mark.parametrize("z", [0.5, 1.6, 2.5, 4.0])
def test_simulation_meets_theory(z):
    rows, seconds = [], []
    for seed in range(12):
        started = time.process_time()
        rows.append(graph_row(10_000, z, np.random.default_rng(seed))[0])
        seconds.append(time.process_time() - started)
    closed = closed_forms(z, 5)
    for name in ("giant", "complexity", "entropy"):
        values = np.asarray([row[name] for row in rows])
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - closed[name]) < 3 * error + 0.01, name
    assert {row["or_share"] for row in rows} == {1.0}
    assert all(row["depth"] == row["complexity"] for row in rows)
    if z in (2.5, 4.0):
        assert np.mean([row["functions"] for row in rows]) == pytest.approx(7.0, abs=0.1)
    print(f"{np.median(seconds):.2f} s a graph")


def test_nothing_spreads_where_one_neighbour_is_not_enough():
    assert graph_row(10_000, 6.0, np.random.default_rng(0), phi=0.3)[0]["complexity"] <= 0.015


def test_transfer_entropy_is_that_of_the_channel():
    # node 1 copies input 0 a step later, node 2 hears of nothing
    clamped, start = all_patterns([np.array([0]), np.array([2])], 4)
    found = spread(graph_of(4, (0, 1), (2, 3)), clamped, start, 0.5)
    bits = np.arange(4) % 2 == 1
    bits_told = transfer_entropy(found.states, bits)
    assert bits_told[3] == pytest.approx(0, abs=1e-12)  # another component
    # by hand: per pattern the states 0 → x → x …; y' follows from (y, x), so that TE = H(y' | y)
    now, new = found.states[:-1, 1].ravel(), found.states[1:, 1].ravel()
    expected = 0.0
    for y, y_new in itertools.product((False, True), repeat=2):
        joint, given = ((now == y) & (new == y_new)).mean(), (now == y).mean()
        expected -= joint * np.log2(joint / given) if joint else 0.0
    assert bits_told[1] == pytest.approx(expected, abs=1e-12)
    assert expected > 0.1


def test_cascades_by_degree_and_threshold():
    """Watts 2002: at φ = 0.18 the window opens at z = 1 and closes below 6."""
    assert [cascades_possible(z, 0.18) for z in (0.9, 1.1, 4.0, 7.0)] == [False, True, True, False]
    assert not any(cascades_possible(z, 0.6) for z in np.arange(0.5, 10, 0.5))
    rng = np.random.default_rng(0)
    for z, phi, yes in ((3.0, 0.18, True), (9.0, 0.18, False), (0.5, 0.1, False)):
        graph = random_graph(4_000, z, rng)
        start = np.zeros((4_000, 32), bool)
        start[rng.choice(4_000, 32, replace=False), np.arange(32)] = True
        size = spread(graph, np.empty(0, np.int64), start, phi).table.mean(0)
        assert bool(size.max() > 0.05) == yes


def test_a_front_and_its_area():
    points = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [1.0, 1.0], [2.0, 1.5]])
    assert front(points).tolist() == [[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]]
    assert hypervolume(points) == 3 * 1 + 2 * 1 + 1 * 1
    assert hypervolume(np.zeros((1, 2))) == 0


def test_the_study_says_its_verdict_first(monkeypatch, tmp_path):
    small = Sizes(600, (0.5, 2.0), 3, 1, 300, 2, 8, 1)
    monkeypatch.setattr(functional_percolation, "QUICK", small)
    setting = Setting(quick=True, work=tmp_path, seed=0, progress=lambda items, _: items, dictionaries={})
    outcome = STUDIES["functional_percolation"].run(setting)
    assert "is that of connection" in outcome.notes[0]
    assert {*outcome.tables} == {
        "degrees", "distance", "cascades", "variants", "front", "circuits", "circuit_distance",
    }  # fmt: skip
    assert len(outcome.plots) == 7
    last = outcome.tables["distance"][-1]
    assert last["distance"] == "not connected"
    assert last["bits"] == pytest.approx(0, abs=1e-9)
    or_shares = {row["variant"]: row["or_share"] for row in outcome.tables["variants"]}
    assert or_shares["a tenth of the nodes inverting"] < 0.9
    assert outcome.tables["circuits"][0]["circuits"] == 1


def test_a_feature_depends_on_earlier_ones_alone(rotary):
    """The truth table of a random subject: all on is the plain pass, and nothing reaches backwards."""
    dictionary, batch = tiny.random_dictionary(rotary, window=1), rotary.tokenize(["CC(=O)Nc1ccccc1"])
    components, n = Features(dictionary), dictionary.config.n_layers
    plain = flowing(rotary, components, range(n), batch)
    active = [
        (layer, at, feature) for layer in range(n)
        for at, feature in (plain[layer][0] > 0).nonzero().tolist()
    ]  # fmt: skip
    inputs = [next(node for node in active if node[0] == layer) for layer in (0, 1)]
    table = truth_table(rotary, dictionary, batch, inputs, active)
    assert table[:, 3].all()
    of = depends(table)
    place = {node: i for i, node in enumerate(active)}
    for i, node in enumerate(inputs):
        assert of[place[node]].tolist() == [j == i for j in range(2)]  # off is off
        others = [place[other] for other in active if other[0] <= node[0] and other != node]
        assert not of[others, i].any()
    assert of.any(1).sum() > 2
