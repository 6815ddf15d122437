"""Four subjects whose circuit is known, since their weights were written by hand, with decoys as active as it.

    copy      induction: … A B … A → B.  0.previous writes to every token what stands before it; 1.induction looks for
              that to equal the last token, and moves the token found there; neurons of layer 1 turn it into a logit
    bracket   0.balance averages +1 for "(" and −1 for ")"; a neuron of layer 0 for each sign stands above a
              threshold; a neuron of layer 1 joins the two and is read at the first token
    ring      a ring digit finds the other digit equal to it (1.partner, which excludes its own place) and moves the
              atom before that (written there by 0.previous); neurons of layer 1 turn it into a logit
    motif     neurons of layer 0 see "NO" and, as often, "SP" (they read the token, and the one before it from
              0.previous); one head of layer 1 each averages them over the sequence and one neuron each stands above a
              threshold; only NO is read, at the first token

Decoys read and attend as the circuit does but write to directions that nothing reads, and they too differ between
clean and corrupt inputs. All sequences of a subject are equally long, and clean and corrupt ones pair up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isotrace.dictionaries.dictionary import Dictionary
from isotrace.discovery.method import Metric
from isotrace.interventions.edges import Component
from isotrace.studies.worlds.planted_weights import LAYERS, Node, Weights, neurons_as_features
from isotrace.subjects.subject import Batch, Subject

ATTEND = 16.0
"""Logit of a match: softmax is then saturated to 1e-5 on sequences this short."""
EMBEDDING, OUTPUT = Component("embedding", -1, 0), Component("output", LAYERS, 0)
Edge = tuple[Component, Component]


@dataclass(frozen=True)
class Planted:
    """`truth`: kind of mediator → its nodes in the circuit. `edges`: between components, those that carry what clean
    and corrupt inputs differ in. `metric` is read at the inputs' own tokens, so it holds for any copies of `clean`."""

    name: str
    subject: Subject
    dictionary: Dictionary
    clean: Batch
    corrupt: Batch
    metric: Metric
    truth: dict[str, frozenset[Node]]
    edges: frozenset[Edge]


def _finish(
    name: str, weights: Weights, folder: Path, pairs: Sequence[tuple[str, str]], metric: Callable[[Subject], Metric],
    heads: Sequence[Node], neurons: Sequence[Node], edges: Sequence[Edge],
) -> Planted:  # fmt: skip
    subject = weights.load(folder / name)
    clean, corrupt = (subject.tokenize(side) for side in zip(*pairs, strict=True))
    nodes = frozenset(neurons)
    mlps = frozenset((layer, 0) for layer, _ in neurons)
    truth = {"head": frozenset(heads), "neuron": nodes, "feature": nodes, "mlp": mlps}
    return Planted(
        name, subject, neurons_as_features(subject), clean, corrupt, metric(subject), truth, frozenset(edges)
    )


def _retrieval(offset: int) -> Callable[[Subject], Metric]:
    """Logit minus the mean logit, at the last token before `<eos>`, of the token that stands `offset` behind the
    first occurrence of that last token."""

    def of(subject: Subject) -> Metric:
        def metric(batch: Batch, final: Tensor) -> Tensor:
            first = (batch.ids[:, :-2] == batch.ids[:, -2:-1]).int().argmax(1, keepdim=True)
            logits = subject.head(final[:, -2])
            return logits.gather(1, batch.ids.gather(1, first + offset))[:, 0] - logits.mean(-1)

        return metric

    return of


def _readout(vector: Tensor) -> Callable[[Subject], Metric]:
    """The final hidden state of `<cls>` along `vector`."""
    return lambda _: lambda batch, final: final[:, 0] @ vector


def _beside(shift: int) -> list[tuple[str, str, float]]:
    """Attends to the token `shift` places on."""
    return [(f"position {p}", f"position {p + shift}", ATTEND) for p in range(max(0, -shift), 20 - max(0, shift))]


def _names(kind: str, tokens: str) -> list[str]:
    return [f"{kind} {token}" for token in tokens]


def _map(tokens: str, source: str, target: str) -> list[tuple[str, str]]:
    return list(zip(_names(source, tokens), _names(target, tokens), strict=True))


def _moves(tokens: str, source: str, target: str) -> list[tuple[str, str, float]]:
    return [(*pair, 1.0) for pair in _map(tokens, source, target)]


def _matches(tokens: str, query: str, key: str) -> list[tuple[str, str, float]]:
    return [(*pair, ATTEND) for pair in _map(tokens, query, key)]


PLACES = [f"position {p}" for p in range(20)]


def _head(node: Node) -> Component:
    return Component("head", *node)


def _mlp(layer: int) -> Component:
    return Component("mlp", layer, 0)


def _path(*components: Component) -> list[Edge]:
    return list(pairwise(components))


def copy(folder: Path, n: int, seed: int) -> Planted:
    tokens = "CNOSPFIB"
    kinds = ("token", "previous", "next", "found", "answer", "junk")
    w = Weights(sum((_names(k, tokens) for k in kinds), [*PLACES, "token <eos>"]))
    junk = _moves(tokens, "token", "junk")
    # what stands behind the last token, <eos>, must not be found
    itself = ("token <eos>", "token <eos>", 2 * ATTEND)
    previous = w.head(0, [*_beside(-1), itself], _moves(tokens, "token", "previous"))
    w.head(0, _beside(1), _moves(tokens, "token", "next"))
    w.head(0, _matches(tokens, "token", "token"), junk)
    w.head(0, [], junk)
    w.detectors(0, _map(tokens, "token", "junk"))
    induction = w.head(1, _matches(tokens, "token", "previous"), _moves(tokens, "token", "found"))
    w.head(1, _matches(tokens, "token", "previous"), _moves(tokens, "next", "junk"))
    w.head(1, _matches(tokens, "token", "next"), junk)
    w.head(1, [], _moves(tokens, "previous", "junk"))
    neurons = w.detectors(1, _map(tokens, "found", "answer"))
    w.detectors(1, _map(tokens, "previous", "junk") + _map(tokens, "next", "junk"))
    for source in ("token", "next", "previous", "found"):
        w.head(2, _matches(tokens, "token", "previous"), _moves(tokens, source, "junk"))
    w.detectors(2, _map(tokens, "found", "junk") + _map(tokens, "previous", "junk"))
    edges = [*_path(EMBEDDING, _head(previous), _head(induction), _mlp(1), OUTPUT), (EMBEDDING, _head(induction))]
    return _finish("copy", w, folder, copy_pairs(tokens, n, seed), _retrieval(1), [previous, induction], neurons, edges)


def copy_pairs(tokens: str, n: int, seed: int) -> list[tuple[str, str]]:
    """All tokens once, two bigrams among them, then the first token of one of the two; every token is the answer
    equally often. Corrupt: the first tokens of the bigrams change places (every other pair: the second ones), so that
    the other answer is right; the other tokens are shuffled."""
    rng, pairs = np.random.default_rng(seed), []
    for i in range(n):
        b = tokens[i // 2 % len(tokens)]
        a, c, d, *rest = rng.permutation([t for t in tokens if t != b]).tolist()
        order = rng.permutation(6)
        sides = []
        for first, second in (((a, b), (c, d)), ((c, b), (a, d)) if i % 2 else ((a, d), (c, b))):
            pieces = ["".join(first), "".join(second), *rng.permutation(rest).tolist()]
            sides.append("".join(pieces[at] for at in order) + a)
        pairs.append(tuple(sides))
    return pairs


def bracket(folder: Path, n: int, seed: int) -> Planted:
    signs = ("over", "under", "more", "fewer")
    w = Weights([*_names("token", "()CN"), "balance", "letters", "brackets", *signs, "unbalanced", "junk", "junk 2"])
    # 12 tokens: a surplus of two, averaged and multiplied by six, has the usual length
    difference = {"balance": "()", "letters": "CN"}
    heads = [
        w.head(0, [], [(f"token {t}", name, gain) for t, gain in zip(pair, (6.0, -6.0), strict=True)])
        for name, pair in difference.items()
    ]
    w.head(0, [], [("token (", "brackets", 2.0), ("token )", "brackets", 2.0)])
    w.head(0, _matches("()CN", "token", "token"), [("token C", "junk", 1.0), ("token )", "junk 2", 1.0)])
    over, under = (w.neuron(0, {"balance": sign * 20}, -20, to) for sign, to in ((1, "over"), (-1, "under")))
    for sign, to in ((1, "more"), (-1, "fewer")):
        w.neuron(0, {"letters": sign * 20}, -20, to)
    w.detectors(0, [("brackets", "junk"), *((f"token {t}", "junk 2") for t in "()CN")])
    joined = w.neuron(1, {"over": 20, "under": 20}, -20, "unbalanced")
    w.neuron(1, {"more": 20, "fewer": 20}, -20, "junk")
    w.detectors(1, [("more", "junk"), ("fewer", "junk 2"), ("over", "junk"), ("under", "junk 2")])
    for layer in (1, 2):
        for source in ("over", "under", "more", "balance"):
            w.head(layer, [], [(source, "junk", 1.0)])
    w.detectors(2, [("unbalanced", "junk"), ("over", "junk 2"), ("more", "junk")])
    edges = _path(EMBEDDING, _head(heads[0]), _mlp(0), _mlp(1), OUTPUT)
    metric = _readout(w["unbalanced"])
    return _finish("bracket", w, folder, _bracket_pairs(n, seed), metric, heads[:1], [over, under, joined], edges)


def _bracket_pairs(n: int, seed: int) -> list[tuple[str, str]]:
    """Brackets four to two, C and N three to one or the other way round. Corrupt: both in balance."""
    rng, pairs = np.random.default_rng(seed), []
    for i in range(n):
        more, letters = (4, 2)[i % 2], (3, 1)[i // 2 % 2]
        clean = "(" * more + ")" * (6 - more) + "C" * letters + "N" * (4 - letters)
        corrupt = "((()))" + "CCNN"
        order = rng.permutation(10)
        pairs.append(tuple("".join(text[at] for at in order) for text in (clean, corrupt)))
    return pairs


def ring(folder: Path, n: int, seed: int) -> Planted:
    atoms, digits = "CNSPB", "123"
    kinds = ("token", "previous", "next", "partner", "answer", "junk")
    w = Weights(sum((_names(k, atoms) for k in kinds), [*PLACES, *_names("token", digits + "()")]))
    junk = _moves(atoms, "token", "junk")
    elsewhere = [(place, place, -2 * ATTEND) for place in PLACES]
    previous = w.head(0, _beside(-1), _moves(atoms, "token", "previous"))
    w.head(0, _beside(1), _moves(atoms, "token", "next"))
    w.head(0, _matches(atoms, "token", "token") + elsewhere, junk)
    w.head(0, [("token )", "token (", ATTEND), ("token (", "token )", ATTEND)], junk)
    w.detectors(0, _map(atoms, "token", "junk"))
    same = _matches(digits, "token", "token") + elsewhere
    partner = w.head(1, same, _moves(atoms, "previous", "partner"))
    w.head(1, same, _moves(atoms, "next", "junk"))
    w.head(1, _matches(atoms, "token", "token") + elsewhere, _moves(atoms, "previous", "junk"))
    w.head(1, [("token )", "token (", ATTEND)], _moves(atoms, "previous", "junk"))
    neurons = w.detectors(1, _map(atoms, "partner", "answer"))
    w.detectors(1, _map(atoms, "previous", "junk") + _map(atoms, "next", "junk"))
    for source in ("previous", "next", "partner", "token"):
        w.head(2, same, _moves(atoms, source, "junk"))
    w.detectors(2, _map(atoms, "partner", "junk") + _map(atoms, "previous", "junk"))
    edges = [*_path(EMBEDDING, _head(previous), _head(partner), _mlp(1), OUTPUT), (EMBEDDING, _head(partner))]
    return _finish("ring", w, folder, ring_pairs(atoms, n, seed), _retrieval(-1), [previous, partner], neurons, edges)


def ring_pairs(atoms: str, n: int, seed: int) -> list[tuple[str, str]]:
    """SMILES of three rings; every atom is the answer equally often. Corrupt: the ring that closes last opens at the
    atom of another and the other way round, since their digits (every other pair: those two atoms) change places;
    the other atoms are drawn anew."""
    rng, pairs = np.random.default_rng(seed), []
    for i in range(n):
        closing = rng.permutation(3).tolist()
        a, b = closing[2], closing[rng.integers(2)]
        answer = atoms[i // 2 % len(atoms)]
        opening = rng.permutation([t for t in atoms if t != answer])[:3].tolist()
        opening[a] = answer
        swapped = list(range(3))
        swapped[a], swapped[b] = b, a
        sides = []
        for place in (range(3), swapped):
            labels, openers = (place, range(3)) if i % 2 else (range(3), place)
            start = [f"{opening[openers[k]]}{labels[k] + 1}{rng.choice(list(atoms))}" for k in range(3)]
            end = [f"{rng.choice(list(atoms))}{k + 1}" for k in closing]
            sides.append("".join([*start, f"({rng.choice(list(atoms))})", *end]))
        pairs.append(tuple(sides))
    return pairs


def motif(folder: Path, n: int, seed: int) -> Planted:
    tokens, motifs = "CFINOSPB", ("NO", "SP", "ON", "PS")
    kinds = ("seen", "average", "present")
    messages = [f"{kind} {pair}" for kind in kinds for pair in motifs]
    w = Weights([*PLACES, *(d for k in ("token", "previous", "next") for d in _names(k, tokens)), *messages, "junk"])
    previous = w.head(0, _beside(-1), _moves(tokens, "token", "previous"))
    w.head(0, _beside(1), _moves(tokens, "token", "next"))
    w.head(0, _matches(tokens, "token", "token"), [(f"token {t}", "junk", 1.0) for t in tokens])
    w.head(0, [], [(f"token {t}", "junk", 1.0) for t in tokens])
    seen = [w.neuron(0, {f"previous {a}": 20, f"token {b}": 20}, -60, f"seen {a}{b}") for a, b in motifs]
    # 12 tokens: what one of them has, averaged and multiplied by 12, has the usual length
    averages = [w.head(1, [], [(f"seen {pair}", f"average {pair}", 12.0)]) for pair in motifs]
    present = w.detectors(1, [(f"average {pair}", f"present {pair}") for pair in motifs])
    w.detectors(1, [(f"seen {pair}", "junk") for pair in motifs])
    for pair in motifs:
        w.head(2, [], [(f"present {pair}", "junk", 1.0)])
    w.detectors(2, [(f"present {pair}", "junk") for pair in motifs])
    edges = _path(EMBEDDING, _head(previous), _mlp(0), _head(averages[0]), _mlp(1), OUTPUT)
    edges.append((EMBEDDING, _mlp(0)))
    heads, neurons = [previous, averages[0]], [seen[0], present[0]]
    return _finish("motif", w, folder, _motif_pairs(n, seed), _readout(w["present NO"]), heads, neurons, edges)


def _motif_pairs(n: int, seed: int) -> list[tuple[str, str]]:
    """Both motifs once, among other tokens. Corrupt: both written backwards, so that the tokens are the same."""
    rng, pairs = np.random.default_rng(seed), []
    for _ in range(n):
        order = rng.permutation(8)
        fillers = rng.choice(list("CFIB"), 6).tolist()
        sides = [[*both, *fillers] for both in (("NO", "SP"), ("ON", "PS"))]
        pairs.append(tuple("".join(pieces[at] for at in order) for pieces in sides))
    return pairs


SUBJECTS: dict[str, Callable[[Path, int, int], Planted]] = {
    "copy": copy, "bracket": bracket, "ring": ring, "motif": motif
}  # fmt: skip
"""Name → (folder to save it in, number of input pairs, seed of the inputs) → the planted subject."""


def planted_subjects(folder: Path, n: int, seed: int) -> list[Planted]:
    with torch.random.fork_rng(devices=[]):  # transformers draws weights before they are overwritten
        return [make(folder, n, seed) for make in SUBJECTS.values()]
