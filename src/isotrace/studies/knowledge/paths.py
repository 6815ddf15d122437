"""Paths between two things in a graph of named relations: few, specific, and none that repeats another's relations.

A step to a node of degree d costs 1 + λ log₂(1 + d), so that hubs are dear. Paths are simple in nodes; of those with
the same sequence of relations, whichever way each is read, the first is kept. Order: cost, specificity, names: it does
not depend on the order of the file.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import log, log2
from pathlib import Path as FilePath

import numpy as np

from isotrace.base.errors import InputError

HUB = 0.1
"""λ."""
LONGEST = 3
"""Relations of a path."""
MOST = 10
"""Paths."""


@dataclass(frozen=True, order=True)
class Triple:
    """`origin`: the table or file that says so."""

    head: str
    relation: str
    tail: str
    origin: str = ""


@dataclass(frozen=True, order=True)
class Path:
    """`specificity`: Σ log of how many neighbours a node has by the relation that it is left by; 0 where there is no
    other way to go. `triples` in the order in which they are walked."""

    cost: float
    specificity: float
    nodes: tuple[str, ...]
    triples: tuple[Triple, ...]

    @property
    def relations(self) -> tuple[str, ...]:
        return tuple(triple.relation for triple in self.triples)

    def told(self) -> str:
        """As a chain, an arrow for the way each relation is written."""
        steps = [self.nodes[0]]
        for start, triple in zip(self.nodes, self.triples, strict=False):
            forward = triple.head == start
            steps.append(f"–{triple.relation}→" if forward else f"←{triple.relation}–")
            steps.append(triple.tail if forward else triple.head)
        return " ".join(steps)


@dataclass(frozen=True, eq=False)
class Graph:
    """Multigraph; of a triple that is said twice the origin that comes first in the alphabet is kept."""

    triples: tuple[Triple, ...]

    @classmethod
    def of(cls, triples: Iterable[Triple]) -> "Graph":
        first: dict[tuple[str, str, str], Triple] = {}
        for triple in sorted(triples):
            first.setdefault((triple.head, triple.relation, triple.tail), triple)
        return cls(tuple(first.values()))

    @classmethod
    def read(cls, path: str | FilePath) -> "Graph":
        """A file of three columns, head, relation and tail, between tabs. Raises InputError for another row."""
        try:
            lines = FilePath(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read as text ({error}): give a file of head, relation, tail.") from None
        found = []
        for number, line in enumerate(lines, 1):
            cells = [cell.strip() for cell in line.split("\t")]
            if not line.strip():
                continue
            if len(cells) != 3 or not all(cells):
                raise InputError(f"{path}, line {number}: {len(cells)} cells, give head, relation, tail between tabs.")
            found.append(Triple(cells[0], cells[1], cells[2], FilePath(path).name))
        if not found:
            raise InputError(f"{path} holds no triple: give head, relation and tail between tabs, a line each.")
        return cls.of(found)

    @cached_property
    def beside(self) -> dict[str, dict[str, list[Triple]]]:
        """Node → neighbour → triples between the two, either way; loops are left out."""
        found: dict[str, dict[str, list[Triple]]] = defaultdict(lambda: defaultdict(list))
        for triple in self.triples:
            if triple.head != triple.tail:
                found[triple.head][triple.tail].append(triple)
                found[triple.tail][triple.head].append(triple)
        return {node: dict(others) for node, others in found.items()}

    @cached_property
    def degree(self) -> dict[str, int]:
        """Triples that a node stands in, loops left out."""
        return {node: sum(map(len, others.values())) for node, others in self.beside.items()}

    @cached_property
    def step(self) -> dict[str, float]:
        """Cost of a step to a node."""
        return {node: 1 + HUB * log2(1 + degree) for node, degree in self.degree.items()}

    @cached_property
    def _by_relation(self) -> dict[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = defaultdict(int)
        for triple in self.triples:
            if triple.head != triple.tail:
                found[triple.head, triple.relation] += 1
                found[triple.tail, triple.relation] += 1
        return dict(found)

    def paths(
        self, start: str, end: str, *, most: int = MOST, longest: int = LONGEST, without: Collection[Triple] = ()
    ) -> list[Path]:
        """`without`: triples that state the answer. Empty where there is none, or a node is not in the graph."""
        seen, found = set(), []
        for path in sorted(self._all(start, end, longest, frozenset(without))):
            if path.relations not in seen:
                seen.add(path.relations)
                found.append(path)
        return found[:most]

    def cheapest(self, start: str, *, longest: int = LONGEST) -> dict[str, float]:
        """Node → cost of the cheapest path to it, of all within reach."""
        if start not in self.beside:
            return {}
        found, edge = {start: 0.0}, {start: 0.0}
        for _ in range(longest):
            new: dict[str, float] = {}
            for node, cost in edge.items():
                for other in self.beside[node]:
                    total = cost + self.step[other]
                    if total < min(found.get(other, np.inf), new.get(other, np.inf)):
                        new[other] = total
            found |= new
            edge = new
        return {node: round(cost, 9) for node, cost in found.items() if node != start}

    def _all(self, start: str, end: str, longest: int, without: frozenset[Triple]) -> Iterator[Path]:
        if start == end or start not in self.beside or end not in self.beside:
            return
        near = self._steps(end, longest)

        def walk(nodes: tuple[str, ...], triples: tuple[Triple, ...]) -> Iterator[tuple[tuple, tuple]]:
            if nodes[-1] == end:
                yield nodes, triples
                return
            left = longest - len(triples)
            for other, between in self.beside[nodes[-1]].items():
                if near.get(other, longest + 1) < left and other not in nodes:
                    for triple in between:
                        if triple not in without:
                            yield from walk((*nodes, other), (*triples, triple))

        for nodes, triples in walk((start,), ()):
            cost = sum(self.step[node] for node in nodes[1:])
            ways = [self._by_relation[node, triple.relation] for node, triple in zip(nodes, triples, strict=False)]
            yield Path(round(cost, 9), round(sum(map(log, ways)), 9), nodes, triples)

    def _steps(self, end: str, longest: int) -> dict[str, int]:
        """Node → steps to `end`, of those that are near."""
        found, edge = {end: 0}, [end]
        for steps in range(1, longest + 1):
            edge = [other for node in edge for other in self.beside[node] if other not in found]
            found |= dict.fromkeys(edge, steps)
        return found

    def rewired(self, rng: np.random.Generator) -> "Graph":
        """The same degrees by relation, other neighbours: tails are dealt anew among the triples of a relation. Triples
        that come out twice are one."""
        by_relation: dict[str, list[Triple]] = defaultdict(list)
        for triple in self.triples:
            by_relation[triple.relation].append(triple)
        found = []
        for group in by_relation.values():
            tails = [group[i].tail for i in rng.permutation(len(group))]
            found += [Triple(t.head, t.relation, tail, t.origin) for t, tail in zip(group, tails, strict=True)]
        return Graph.of(found)
