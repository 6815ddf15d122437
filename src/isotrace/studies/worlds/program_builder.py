"""Programs over tokens as weights: `select`, `aggregate`, `selector_width`, `lookup` and `above` (after RASP, Weiss et
al. 2021, arXiv:2106.06981), written into the model of `Weights`. What they read and write is noted as edges.

A variable stands at every token and has one of its values there, a direction each ("token C", "position 3"). Token and
position are the embedding's. Positions count from `<cls>` at 0, and carry nothing that two inputs differ in.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from isotrace.interventions.edges import Component
from isotrace.studies.worlds.planted_subjects import ATTEND, EMBEDDING, OUTPUT, Edge
from isotrace.studies.worlds.planted_weights import LENGTH, Node, Weights
from isotrace.subjects.subject import Subject

CLS = "<cls>"
STEP, MARGIN = 10.0, 30.0
"""Half of what a step neuron rises by, and the least distance of what it reads from its threshold."""


@dataclass(frozen=True)
class Selector:
    """Which tokens a token looks at: those whose logit is the sum of `scores`. `slots` as in `Weights.head`."""

    slots: tuple[tuple[tuple[str, ...], str, float], ...]
    reads: frozenset[str]
    score: float

    def __and__(self, other: "Selector") -> "Selector":
        return Selector(self.slots + other.slots, self.reads | other.reads, self.score + other.score)


EVERYWHERE = Selector((), frozenset(), 0.0)


class Builder:
    """`values`: variable → its values; `more`: directions of another kind. `heads`, `neurons` and `edges` are those of
    the program; what is written inside `decoys()` is not among them."""

    def __init__(self, values: Mapping[str, Sequence[str]], more: Sequence[str] = (), residues: str = "") -> None:
        names = [f"{variable} {value}" for variable, each in values.items() for value in each]
        self.weights, self.values = Weights([*names, *more], residues), values
        self.heads: list[Node] = []
        self.neurons: list[Node] = []
        self.edges: set[Edge] = set()
        self._writers: dict[str, Component] = {"token": EMBEDDING}
        self._decoys = False

    @contextmanager
    def decoys(self) -> Iterator[None]:
        self._decoys = True
        yield
        self._decoys = False

    def select(
        self, query: str, key: str, chosen: Callable[[str, str], bool], rank: Callable[[str], float] = lambda _: 0.0
    ) -> Selector:
        """`chosen(value at the query, value at the key)`; `rank(value at the key)` is added to the logit, so that of
        several the highest is attended to."""
        slots = []
        for k in self.values[key]:
            queries = tuple(f"{query} {q}" for q in self.values[query] if chosen(q, k))
            if queries:
                slots.append((queries, f"{key} {k}", ATTEND + rank(k)))
        return Selector(tuple(slots), frozenset({query, key}), ATTEND)

    def aggregate(self, layer: int, selector: Selector, value: str, to: str, gain: float = 1.0) -> Node:
        """`to` is the mean, over the tokens selected, of those values of `value` that `to` has, times `gain`."""
        moves = [(f"{value} {v}", f"{to} {v}", gain) for v in self.values[to]]
        return self._head(layer, selector, moves, {value}, to)

    def selector_width(self, layer: int, selector: Selector, to: str) -> Node:
        """How many tokens are selected, as one of the values "0", "1", …, n (or more) of `to`. `<cls>` is attended to
        as well, so that its weight is 1 / (1 + count) ("`to` share"), and neurons of the layer invert that."""
        anyone = tuple(f"position {p}" for p in self.values["position"])
        with_cls = (*selector.slots, (anyone, f"token {CLS}", selector.score))
        share, counts = f"{to} share", self.values[to]
        counted = Selector(with_cls, selector.reads, selector.score)
        node = self._head(layer, counted, [(f"token {CLS}", share, 1.0)], {"token"}, share)
        self._note(self.weights.neuron(layer, {}, 20.0, f"{to} {counts[-1]}"), [share], to)
        for n in range(1, len(counts)):  # fewer than n: the one below, and not n or one above it
            middle, gap = (1 / n + 1 / (n + 1)) / 2, 1 / n - 1 / (n + 1)
            slope = 2 * MARGIN / (gap * LENGTH)
            writes = {f"{to} {n - 1}": LENGTH, f"{to} {n}": -LENGTH}
            self.above(layer, {share: slope}, -slope * LENGTH * middle, writes, [share], to)
        return node

    def lookup(self, layer: int, inputs: Sequence[str], to: str, table: Mapping[tuple[str, ...], str]) -> None:
        """A neuron for each entry: `to` has the value there where all `inputs` have theirs."""
        for entry, value in table.items():
            reads = {f"{name} {v}": 40 / LENGTH for name, v in zip(inputs, entry, strict=True)}
            bias = 20.0 - 40.0 * len(inputs)
            self._note(self.weights.neuron(layer, reads, bias, f"{to} {value}"), inputs, to)

    def above(
        self, layer: int, reads: Mapping[str, float], bias: float, writes: Mapping[str, float],
        inputs: Sequence[str], to: str,
    ) -> None:  # fmt: skip
        """Two neurons that together write `writes` where Σ reads · direction + bias is positive, and else nothing:
        it must be `STEP` or more from zero."""
        for sign in (1, -1):
            lengths = {name: sign * length for name, length in writes.items()}
            self._note(self.weights.neuron(layer, reads, bias + sign * STEP, lengths), inputs, to)

    def finish(self, folder: Path) -> tuple[Subject, frozenset[Edge]]:
        """The model, and the program's edges with that from the writer of "answer" to the output."""
        return self.weights.load(folder), frozenset({*self.edges, (self._writers["answer"], OUTPUT)})

    def _head(
        self, layer: int, selector: Selector, moves: Sequence[tuple[str, str, float]], values: set[str], to: str
    ) -> Node:
        node = self.weights.head(layer, selector.slots, moves)
        if not self._decoys:
            self.heads.append(node)
            self._edges({*selector.reads, *values}, Component("head", *node), to)
        return node

    def _note(self, node: Node, inputs: Sequence[str], to: str) -> None:
        if not self._decoys:
            self.neurons.append(node)
            self._edges(set(inputs), Component("mlp", node[0], 0), to)

    def _edges(self, inputs: set[str], reader: Component, to: str) -> None:
        self.edges |= {(self._writers[name], reader) for name in inputs - {"position"}}
        self._writers[to] = reader
