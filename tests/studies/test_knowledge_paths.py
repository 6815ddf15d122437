"""Paths of named relations, against brute force and by hand (METHODS_DYNAMICS §4)."""

import itertools
from math import log, log2
from typing import Any, cast

import networkx as nx
import numpy as np
import pytest

from isotrace.base.errors import InputError
from isotrace.studies.knowledge.grounding import grounded, substitutes
from isotrace.studies.knowledge.paths import HUB, Graph, Triple


def graph_of(*rows):
    return Graph.of(Triple(*row) for row in rows)


def test_a_diamond_has_two_ways_and_the_hub_comes_last():
    hub = [("hub", "r", f"leaf {i}") for i in range(20)]
    graph = graph_of(("a", "r", "b"), ("b", "s", "z"), ("a", "r", "hub"), ("hub", "t", "z"), *hub)
    paths = graph.paths("a", "z")
    assert [path.nodes for path in paths] == [("a", "b", "z"), ("a", "hub", "z")]
    # by hand: b has degree 2, z 2; from a two ways by r, from b one by s
    assert paths[0].cost == pytest.approx(2 + HUB * (log2(3) + log2(3)))
    assert paths[0].specificity == pytest.approx(log(2))
    assert paths[0].told() == "a –r→ b –s→ z"
    assert paths[0].cost < paths[1].cost


def test_relations_are_distinct_whichever_way_they_are_read():
    graph = graph_of(("a", "r", "b"), ("z", "s", "b"), ("a", "r", "c"), ("c", "s", "z"), ("a", "q", "z"))
    paths = graph.paths("a", "z")
    assert [path.relations for path in paths] == [("q",), ("r", "s")]
    assert paths[1].told() == "a –r→ b ←s– z"  # of two that are alike the first by name
    assert graph.paths("a", "z", without=[Triple("a", "q", "z")])[0].relations == ("r", "s")
    assert graph.paths("a", "a") == []
    assert graph.paths("a", "nowhere") == []
    assert [path.relations for path in graph.paths("a", "z", most=1)] == [("q",)]


def test_parallel_relations_are_all_ways():
    graph = graph_of(("a", "r", "b"), ("a", "s", "b"), ("b", "t", "a"))
    assert {path.relations for path in graph.paths("a", "b")} == {("r",), ("s",), ("t",)}


def test_a_grid_has_its_paths():
    """3 × 3: between opposite corners 12 simple paths, of at most four steps 6."""
    places = list(itertools.product(range(3), range(3)))
    rows = [
        (f"{x}{y}", f"{x}{y}>{u}{v}", f"{u}{v}")
        for x, y in places
        for u, v in ((x + 1, y), (x, y + 1))
        if (u, v) in places
    ]
    graph = graph_of(*rows)
    assert len(graph.paths("00", "22", longest=4, most=100)) == 6
    assert len(graph.paths("00", "22", longest=8, most=100)) == 12
    assert graph.paths("00", "22", longest=3) == []
    assert "22" in graph.cheapest("00", longest=4)
    assert "22" not in graph.cheapest("00", longest=3)


def random_triples(rng):
    n = int(rng.integers(3, 10))
    return [
        Triple(f"n{a}", f"r{r}", f"n{b}")
        for a, b, r in rng.integers(0, (n, n, 3), (int(rng.integers(2, 3 * n)), 3)).tolist()
    ]


def by_brute_force(triples, start, end, longest):
    """The triples of every simple path, by networkx, parallel edges apart."""
    graph: Any = nx.MultiGraph()
    for triple in {*triples}:
        if triple.head != triple.tail:
            graph.add_edge(triple.head, triple.tail, key=triple)
    if start not in graph or end not in graph:
        return set()
    found = nx.all_simple_edge_paths(graph, start, end, cutoff=longest)
    return {tuple(edge[2] for edge in path) for path in cast(Any, found)}


@pytest.mark.parametrize("longest", [2, 3, 5])
def test_paths_are_those_of_brute_force(longest):
    rng, joined = np.random.default_rng(longest), 0
    for _ in range(200):
        triples = random_triples(rng)
        graph, every = Graph.of(triples), by_brute_force(triples, "n0", "n1", longest)
        paths = graph.paths("n0", "n1", longest=longest, most=10_000)
        assert {path.triples for path in paths} <= every
        # one for every sequence of relations, the cheapest
        assert {path.relations for path in paths} == {tuple(t.relation for t in one) for one in every}
        assert len(paths) == len({path.relations for path in paths})
        assert paths == sorted(paths)
        for path in paths:
            same = [one for one in graph._all("n0", "n1", longest, frozenset()) if one.relations == path.relations]
            assert path == min(same)
        joined += bool(every)
        shuffled = [triples[i] for i in rng.permutation(len(triples))]
        assert Graph.of(shuffled).paths("n0", "n1", longest=longest, most=10_000) == paths
        assert graph.cheapest("n0", longest=longest).get("n1") == (paths[0].cost if every else None)
    assert 50 < joined < 200


def test_a_rewired_graph_keeps_degrees_by_relation():
    rng = np.random.default_rng(0)
    graph = Graph.of(Triple(f"h{a}", f"r{a % 2}", f"t{b}") for a, b in rng.integers(0, 40, (100, 2)).tolist())
    other = graph.rewired(rng)
    for end in ("head", "tail"):
        for relation in ("r0", "r1"):
            count = lambda g, e=end, r=relation: sorted(getattr(t, e) for t in g.triples if t.relation == r)  # noqa: E731
            lost = len(count(graph)) - len(count(other))
            assert 0 <= lost < 10  # triples that came out twice
            assert {*count(other)} <= {*count(graph)}
    assert {*graph.triples} != {*other.triples}


def test_a_null_stays_near_in_degree():
    rows = [(f"c{i}", "r", f"x{i}{j}") for i in range(30) for j in range(i + 1)]
    graph, names = graph_of(*rows), [f"c{i}" for i in range(30)]
    found = substitutes(graph, names, np.random.default_rng(0))
    assert {*found} == {*names}
    assert all(found[name] != name for name in names)
    assert max(abs(graph.degree[a] - graph.degree[b]) for a, b in found.items()) <= 11


def test_planted_chains_are_told_and_chance_is_not():
    """Concepts c0 … c19 reach the target by a chain of their own; d0 … d19 have as many neighbours and do not."""
    rows = [(f"c{i}", "part of", f"m{i}") for i in range(20)] + [(f"m{i}", "binds", "target") for i in range(20)]
    rows += [(f"d{i}", "part of", f"w{i}") for i in range(20)] + [(f"w{i}", "binds", f"other {i}") for i in range(20)]
    graph, concepts = graph_of(*rows), [f"{kind}{i}" for kind in "cd" for i in range(20)]
    options = {"n_nulls": 10, "seed": 0, "fixed": frozenset({"target"})}
    planted = grounded(graph, [(f"c{i}", "target") for i in range(20)], concepts, **options)
    assert planted["support"] == 1
    assert planted["told"]
    assert planted["equal_degree_support"] == pytest.approx(0.5, abs=0.15)
    mixed = [*(f"c{i}" for i in range(10)), *(f"d{i}" for i in range(10))]
    assert not grounded(graph, [(name, "target") for name in mixed], concepts, **options)["told"]


def test_a_file_of_triples_is_read(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text("a\tr\tb\n\nb\ts\tz\n")
    graph = Graph.read(path)
    assert graph.paths("a", "z")[0].told() == "a –r→ b –s→ z"
    assert graph.triples[0].origin == "mine.tsv"
    path.write_text("a\tr\tb\nb\ts\n")
    with pytest.raises(InputError, match="line 2: 2 cells"):
        Graph.read(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no triple"):
        Graph.read(path)
    with pytest.raises(InputError, match="cannot be read"):
        Graph.read(tmp_path / "absent.tsv")
