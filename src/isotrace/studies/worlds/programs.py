"""Seven subjects that run a known program, given as text; inputs, edges and decoys as in `planted_subjects`.

    copy        what stood behind the last token before                    (1.induction over 0.previous)
    ring        the atom at which the ring opened that the last token closes   (two hops)
    depth       Dyck-1: the greatest depth of brackets in the string
    partner     Dyck-2: does the last bracket close one of its own kind?
    histogram   how often the last token's element occurs
    halogen     the most frequent of F, Cl and Br
    strand      does AC stand in the sequence, or its reverse complement GT?

The answer is a token, or "" for none, read at the last token. `copy` and `ring` are those of `planted_subjects`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isotrace.discovery.method import Metric
from isotrace.studies.worlds import planted_subjects
from isotrace.studies.worlds import program_inputs as inputs
from isotrace.studies.worlds.planted_subjects import Planted
from isotrace.studies.worlds.planted_weights import LENGTH, neurons_as_features
from isotrace.studies.worlds.program_builder import CLS, EVERYWHERE, Builder
from isotrace.studies.worlds.program_inputs import Pairs
from isotrace.subjects.subject import Batch, Subject

TEXT = {
    "copy": """
def program(tokens):
    return tokens[tokens.index(tokens[-1]) + 1]
""",
    "ring": """
def program(tokens):
    return tokens[tokens.index(tokens[-1]) - 1]
""",
    "depth": """
def program(tokens):
    depths = [tokens[: i + 1].count("(") - tokens[: i + 1].count(")") for i in range(len(tokens))]
    return str(max(depths))
""",
    "partner": """
def program(tokens):
    opened = []
    for token in tokens:
        if token in "([":
            opened.append(token)
        elif token in ")]":
            last = opened.pop()
    return "1" if last + tokens[-1] in ("()", "[]") else "0"
""",
    "histogram": """
def program(tokens):
    return str(tokens.count(tokens[-1]))
""",
    "halogen": """
def program(tokens):
    first, second, third = sorted(("F", "Cl", "Br"), key=tokens.count, reverse=True)
    return first if tokens.count(first) > tokens.count(second) else ""
""",
    "strand": """
def program(tokens):
    pairs = list(zip(tokens, tokens[1:]))
    return "1" if ("A", "C") in pairs or ("G", "T") in pairs else ""
""",
}


@dataclass(frozen=True)
class Program:
    """`answers`: all that it may say but "". `pairs(n, seed)`: clean and corrupt sequences."""

    planted: Planted
    text: str
    answers: tuple[str, ...]
    pairs: Callable[[int, int], Pairs]

    @cached_property
    def run(self) -> Callable[[Sequence[str]], str]:
        return compiled(self.text)

    def inputs(self, n: int, seed: int) -> list[str]:
        """`n` sequences, clean and corrupt ones in turns."""
        return [side for pair in self.pairs((n + 1) // 2, seed) for side in pair][:n]

    def said(self, batch: Batch) -> list[str]:
        """What the program says of each sequence."""
        return [self.run(tokens) for tokens in words(self.planted.subject, batch)]

    @torch.no_grad()
    def predicted(self, batch: Batch) -> list[str]:
        """What the subject says: the answer whose logit stands highest, if it is above half of its usual length."""
        subject = self.planted.subject
        logits = subject.head(subject.run(batch, logits=False).final[:, -2])
        best, at = logits[:, [subject.token_id(a) for a in self.answers]].max(-1)
        return [self.answers[i] if b > LENGTH / 2 else "" for b, i in zip(best.tolist(), at.tolist(), strict=True)]


def words(subject: Subject, batch: Batch) -> list[list[str]]:
    """Tokens of each sequence, without `<cls>` and `<eos>`."""
    return [subject.tokens(row)[1:-1] for row in batch.ids]


def compiled(text: str) -> Callable[[Sequence[str]], str]:
    names: dict[str, Any] = {}
    exec(text, names)  # the text is ours, see TEXT
    return names["program"]


def _metric(subject: Subject, run: Callable[[Sequence[str]], str]) -> Metric:
    """Logit of the program's answer minus the mean logit, at the last token."""

    def metric(batch: Batch, final: Tensor) -> Tensor:
        logits = subject.head(final[:, -2])
        ids = torch.tensor([subject.token_id(run(tokens)) for tokens in words(subject, batch)], device=logits.device)
        return logits.gather(1, ids[:, None])[:, 0] - logits.mean(-1)

    return metric


def _program(name: str, built: Builder, folder: Path, n: int, seed: int, pairs: Callable[[int, int], Pairs]) -> Program:
    subject, edges = built.finish(folder / name)
    clean, corrupt = (subject.tokenize(side) for side in zip(*pairs(n, seed), strict=True))
    neurons = frozenset(built.neurons)
    truth = {"head": frozenset(built.heads), "neuron": neurons, "feature": neurons,
             "mlp": frozenset((layer, 0) for layer, _ in neurons)}  # fmt: skip
    metric = _metric(subject, compiled(TEXT[name]))
    planted = Planted(name, subject, neurons_as_features(subject), clean, corrupt, metric, truth, edges)
    return Program(planted, TEXT[name], tuple(built.values["answer"]), pairs)


CLOSER, AHEAD = 6.0, 100.0
"""Of a logit: what a token gains by standing one place later, and what outweighs any number of places."""


def _numbers(first: int, last: int) -> list[str]:
    return [str(n) for n in range(first, last + 1)]


def _same(a: str, b: str) -> bool:
    return a == b


def _before(q: str, k: str) -> bool:
    return int(k) < int(q)


def depth(folder: Path, n: int, seed: int) -> Program:
    counts, depths = _numbers(0, 3), _numbers(1, 3)
    counted = {"opened": "(", "closed": ")", "carbons": "C", "nitrogens": "N"}
    levels = {"depth": ("opened", "closed"), "surplus": ("carbons", "nitrogens")}
    values = {"token": [CLS, *"()CN"], "position": _numbers(0, 10), "answer": depths, **dict.fromkeys(counted, counts)}
    values |= {name: depths for level in levels for name in (level, f"{level} anywhere")}
    b = Builder(values, [*(f"{name} share" for name in counted), "junk"])
    so_far = b.select("position", "position", lambda q, k: 0 < int(k) <= int(q))
    table = {(str(o), str(c)): str(o - c) for o, c in product(range(4), range(4)) if o > c}

    def count(level: str) -> None:
        for name in levels[level]:
            b.selector_width(0, so_far & b.select("position", "token", lambda _, k, t=counted[name]: k == t), name)
        b.lookup(1, levels[level], level, table)
        b.aggregate(2, EVERYWHERE, level, f"{level} anywhere", gain=12.0)

    count("depth")
    for d in depths:  # the greatest depth is d where d is somewhere and d + 1 is nowhere
        writes = {f"answer {d}": LENGTH} | ({f"answer {int(d) - 1}": -LENGTH} if d > "1" else {})
        b.above(2, {f"depth anywhere {d}": 20}, -20, writes, ["depth anywhere"], "answer")
    with b.decoys():
        count("surplus")
        for d in depths:
            b.above(2, {f"surplus anywhere {d}": 20}, -20, {"junk": LENGTH}, [], "junk")
    return _program("depth", b, folder, n, seed, inputs.depth_pairs)


def partner(folder: Path, n: int, seed: int) -> Program:
    kinds, counts, levels = "([", _numbers(0, 3), _numbers(1, 3)
    values = {"token": [CLS, *"()[]C"], "position": _numbers(0, 9), "answer": ["1", "0"], "opened": counts}
    values |= {"closed": counts, "level": levels, "partner": [*kinds], "nearest": [*"()[]"], "atoms": counts}
    b = Builder(values, ["opened share", "closed share", "atoms share", "junk"], residues="()[]C10")
    so_far = b.select("position", "position", lambda q, k: 0 < int(k) <= int(q))
    before = b.select("position", "position", lambda q, k: 0 < int(k) < int(q))
    b.selector_width(0, so_far & b.select("position", "token", lambda _, k: k in kinds), "opened")
    # a bracket that closes is on the level of the one it closes
    b.selector_width(0, before & b.select("position", "token", lambda _, k: k in ")]"), "closed")
    b.lookup(1, ["opened", "closed"], "level",
             {(str(o), str(c)): str(o - c) for o, c in product(range(4), range(4)) if o > c})  # fmt: skip
    nearest = b.select("position", "position", _before, rank=lambda k: CLOSER * int(k))
    opening = b.select("position", "token", lambda _, k: k in kinds, rank=lambda _: AHEAD)
    level = b.select("level", "level", _same, rank=lambda _: AHEAD)
    b.aggregate(2, nearest & opening & level, "token", "partner")
    b.lookup(2, ["partner", "token"], "answer",
             {(o, c): str(int(o + c in ("()", "[]"))) for o, c in product(kinds, ")]")})  # fmt: skip
    with b.decoys():
        b.selector_width(0, so_far & b.select("position", "token", lambda _, k: k == "C"), "atoms")
        b.aggregate(2, nearest & b.select("position", "token", lambda _, k: k in "()[]", lambda _: AHEAD), "token",
                    "nearest")  # fmt: skip
        for o, c in product("()[]", ")]"):
            b.weights.neuron(2, {f"nearest {o}": 20, f"token {c}": 20}, -60, "junk")
        for name in ("opened", "closed"):
            b.weights.detectors(1, [(f"{name} {c}", "junk") for c in counts])
    return _program("partner", b, folder, n, seed, inputs.partner_pairs)


def histogram(folder: Path, n: int, seed: int) -> Program:
    elements, counts = "CNOS", _numbers(0, 4)
    values = {"token": [CLS, *elements], "position": _numbers(0, 10), "answer": counts[1:]}
    values |= dict.fromkeys(("count", "others", "before"), counts)
    b = Builder(values, ["count share", "others share", "before share", "junk"])
    same = b.select("token", "token", lambda q, k: q == k != CLS)
    b.selector_width(0, same, "count")
    b.lookup(1, ["count"], "answer", {(c,): c for c in counts[1:]})
    with b.decoys():
        b.selector_width(0, b.select("token", "token", lambda q, k: CLS not in (q, k) and q != k), "others")
        b.selector_width(0, same & b.select("position", "position", _before), "before")
        b.weights.detectors(1, [(f"{name} {c}", "junk") for name in ("others", "before", "count") for c in counts])
    return _program("histogram", b, folder, n, seed, inputs.histogram_pairs)


def halogen(folder: Path, n: int, seed: int) -> Program:
    groups = {"halogen": ("F", "Cl", "Br"), "other": ("C", "N", "O")}
    values: dict[str, Sequence[str]] = {"token": sum(groups.values(), ()), "answer": groups["halogen"]}
    for name, kinds in groups.items():
        values |= {f"{name} count": kinds, f"{name} beats": [f"{a} {c}" for a, c in permutations(kinds, 2)]}
    b = Builder(values, ["junk"])

    def compare(name: str, kinds: Sequence[str]) -> None:
        b.aggregate(0, EVERYWHERE, "token", f"{name} count", gain=12.0)
        for a, c in permutations(kinds, 2):  # by one half or more
            reads = {f"{name} count {a}": 20.0, f"{name} count {c}": -20.0}
            b.above(0, reads, -20, {f"{name} beats {a} {c}": LENGTH}, [f"{name} count"], f"{name} beats")

    compare("halogen", groups["halogen"])
    beats = "halogen beats"
    for a in groups["halogen"]:
        won = [f"{a} {c}" for c in groups["halogen"] if c != a]
        b.lookup(1, [beats, beats], "answer", {(won[0], won[1]): a})
    with b.decoys():
        compare("other", groups["other"])
        for a in groups["other"]:
            b.weights.neuron(1, {f"other beats {a} {c}": 20 for c in groups["other"] if c != a}, -60, "junk")
        b.weights.detectors(1, [(f"halogen beats {a} {c}", "junk") for a, c in permutations(groups["halogen"], 2)])
    return _program("halogen", b, folder, n, seed, inputs.halogen_pairs)


def strand(folder: Path, n: int, seed: int) -> Program:
    letters, size = "ACGT", 10
    kinds = ("hit", "miss")
    values = {"token": [*letters], "position": _numbers(0, size), "previous": [*letters], "next": [*letters]}
    values |= {"pair": kinds, "anywhere": kinds, "answer": ["1"]}
    b = Builder(values, ["junk"], residues=letters + "1")
    b.aggregate(0, b.select("position", "position", lambda q, k: int(k) == int(q) - 1), "token", "previous")
    b.lookup(0, ["previous", "token"], "pair", {("A", "C"): "hit", ("G", "T"): "hit"})
    b.aggregate(1, EVERYWHERE, "pair", "anywhere", gain=12.0)
    b.above(1, {"anywhere hit": 20}, -20, {"answer 1": LENGTH}, ["anywhere"], "answer")
    with b.decoys():
        b.aggregate(0, b.select("position", "position", lambda q, k: int(k) == int(q) + 1), "token", "next")
        b.lookup(0, ["previous", "token"], "pair", {("A", "G"): "miss", ("C", "T"): "miss"})
        b.above(1, {"anywhere miss": 20}, -20, {"junk": LENGTH}, [], "junk")
        for variable in ("previous", "next"):
            b.weights.head(1, [], [(f"{variable} {t}", "junk", 1.0) for t in letters])
        b.weights.detectors(0, [(f"{v} {t}", "junk") for v in ("previous", "next") for t in letters])
        b.weights.detectors(2, [("anywhere miss", "junk"), ("anywhere hit", "junk")])
    return _program("strand", b, folder, n, seed, inputs.strand_pairs)


def _standing(name: str, answers: Sequence[str], pairs: Callable[[int, int], Pairs]) -> Callable[..., Program]:
    def make(folder: Path, n: int, seed: int) -> Program:
        return Program(planted_subjects.SUBJECTS[name](folder, n, seed), TEXT[name], tuple(answers), pairs)

    return make


PROGRAMS: dict[str, Callable[[Path, int, int], Program]] = {
    "copy": _standing("copy", "CNOSPFIB", lambda n, seed: planted_subjects.copy_pairs("CNOSPFIB", n, seed)),
    "ring": _standing("ring", "CNSPB", lambda n, seed: planted_subjects.ring_pairs("CNSPB", n, seed)),
    "depth": depth, "partner": partner, "histogram": histogram, "halogen": halogen, "strand": strand,
}  # fmt: skip
"""Name → (folder to save it in, number of input pairs, seed of the inputs) → the program."""


def programs(folder: Path, n: int, seed: int) -> list[Program]:
    with torch.random.fork_rng(devices=[]):  # transformers draws weights before they are overwritten
        return [make(folder, n, seed) for make in PROGRAMS.values()]
