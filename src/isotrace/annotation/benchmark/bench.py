"""The bench: sequences in three parts, functions drawn on them, labels asked for and graded, tables with intervals.

1. parts      two thirds of the groups of relatives are shown to labelers (a half to choose, a half to test), on the
              third labels are graded
2. concepts   a third of those that are matched by patterns (SMARTS) is left out of the list that labelers see
3. labels     of every labeler, for every function; grades on the third part
4. tables     means over functions of a cell with intervals by bootstrap of functions; shares with exact intervals
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.stats import binomtest

from isotrace.annotation.benchmark.functions import CELLS, CORRUPTED, PATTERNS, Function, Generator
from isotrace.annotation.benchmark.grade import Difficulty, Grade, Label, difficulty, grade
from isotrace.annotation.benchmark.ground import Ground
from isotrace.annotation.benchmark.labelers import Labeler, Shown
from isotrace.annotation.nulls.permutation import Tracks
from isotrace.base.errors import InputError
from isotrace.stats.bootstrap import Seed, mean_interval
from isotrace.stats.splits import deal

LEFT_OUT = 1 / 3
GRADES = ("auroc", "within", "spearman", "sequences", "choice")
BINS = (("easy", 0.0, 0.1), ("middle", 0.1, 0.5), ("hard", 0.5, 1.01))
"""By `Difficulty.apart`."""


@dataclass(frozen=True, eq=False)
class Bench:
    """`listed`: the ground with the concepts that labelers see. `part`: int64 `[sequences]`, 0 and 1 shown, 2 graded.
    `hard`: of each function."""

    ground: Ground
    listed: Ground
    part: np.ndarray
    functions: tuple[Function, ...]
    hard: tuple[Difficulty, ...]
    seed: int

    @property
    def graded_on(self) -> np.ndarray:
        return np.flatnonzero(self.part == 2)

    def shown(self) -> Shown:
        rows = np.flatnonzero(self.part < 2)
        ground = self.listed.take(rows)
        tokens = self.ground.table.token_rows(rows)
        values = np.stack([function.values[tokens] for function in self.functions], 1)
        return Shown(ground, sparse.csr_matrix(values), self.part[rows] == 1, self.seed)

    def graded(self, labels: Sequence[Label], shuffled: bool = False) -> list[Grade]:
        """`shuffled`: what a label predicts is exchanged between sequences of like length and turned within them, so
        that every grade but `sequences` is at chance. Raises InputError unless there is one label per function."""
        if len(labels) != len(self.functions):
            raise InputError(f"{len(labels)} labels of {len(self.functions)} functions: give one of each.")
        tracks = Tracks.of(self.ground.table.sequence_ptr, self.ground.special)
        source = (exchanged(tracks, (self.seed, 12, i)) if shuffled else None for i in range(len(labels)))
        every = zip(labels, self.functions, source, strict=True)
        return [grade(one, f, self.listed, self.graded_on, moved) for one, f, moved in every]


def bench(
    ground: Ground, *, per_cell: int, seed: int, cells: Sequence[str] = CELLS, groups: Sequence[str] | None = None
) -> Bench:
    """`per_cell` functions of each of `cells`. `groups`: of the sequences, else those of the domain.

    Raises InputError where the sequences give too few functions of a cell, or form fewer than three groups."""
    groups = ground.domain.groups([reading.text for reading in ground.readings]) if groups is None else groups
    part = deal(groups, (1 / 3, 1 / 3, 1 / 3), seed)
    concepts, rng = ground.table.token_concepts, np.random.default_rng((seed, 10))
    left_out = [
        c.group in PATTERNS and bool(out) for c, out in zip(concepts, rng.random(len(concepts)) < LEFT_OUT, strict=True)
    ]
    listed = ground.pick(np.flatnonzero(~np.asarray(left_out)))
    owner = part[ground.table.sequence_of]
    generator = Generator(ground, [(owner == p) & ~ground.special for p in range(3)], seed)
    functions = tuple(function for cell in cells for function in generator.cell(cell, per_cell))
    rows = np.flatnonzero(part == 2)
    return Bench(ground, listed, part, functions, tuple(difficulty(f, listed, rows) for f in functions), seed)


def exchanged(tracks: Tracks, seed: Seed) -> np.ndarray:
    """int64 `[tokens]`: the token whose prediction each is given. As `Tracks.source`, but no sequence is given its own
    track, which would leave a part of what is to be broken."""
    rng, donor, length = np.random.default_rng(seed), np.arange(len(tracks.ptr) - 1), np.diff(tracks.ptr)
    order = np.lexsort((rng.random(len(tracks.stratum)), tracks.stratum))
    for members in np.split(order, np.flatnonzero(np.diff(tracks.stratum[order])) + 1):
        donor[members] = np.roll(members, 1)
    offset = np.zeros_like(length)
    offset[: len(order)] = rng.integers(0, np.maximum(length[donor[: len(order)]], 1))
    own, i = tracks.track_of, np.arange(len(tracks.place)) - tracks.ptr[tracks.track_of]
    source = np.empty_like(tracks.place)
    source[tracks.place] = tracks.place[tracks.ptr[donor[own]] + (i + offset[own]) % length[donor[own]]]
    return source


def compare(
    made: Bench, labelers: Mapping[str, Labeler], shuffled: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """Tables `cells`, `difficulty`, `listed` (concepts in the list or left out) and `functions` (what each labeler said
    of each). Means have `NAME_ci` over functions; an abstention counts as chance. `shuffled`: labelers whose labels are
    graded once more with their predictions shuffled."""
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("cells", "difficulty", "listed", "functions")}
    apart, shown = np.asarray([h.apart for h in made.hard]), made.shown()
    for labeler, label in labelers.items():
        labels = label(shown)
        for name, moved in ((labeler, False), (f"{labeler}, shuffled", True))[: 1 + (labeler in shuffled)]:
            grades = made.graded(labels, moved)
            for table, head, at in _groups(made, apart):
                tables[table].append({"labeler": name, **head, **_row(grades, at, apart, made.seed)})
            if not moved:
                tables["functions"] += [{"labeler": name, **row} for row in _functions(made, labels, grades)]
    return tables


def _groups(made: Bench, apart: np.ndarray) -> Iterator[tuple[str, dict[str, str], np.ndarray]]:
    """(table, what the row is called, bool `[functions]`) of each row that has any."""
    cell = np.asarray([f.cell for f in made.functions])
    family = np.where(np.isin(cell, CORRUPTED), "corrupted", cell)
    names = {concept.name for concept in made.listed.table.token_concepts}
    known = np.asarray([names.issuperset(f.draft.concepts) for f in made.functions])
    found = [("cells", {"cell": name}, cell == name) for name in dict.fromkeys(cell.tolist())]
    found.append(("cells", {"cell": "all but none"}, cell != "none"))
    for name in dict.fromkeys(family.tolist()):
        for step, low, high in BINS:
            at = (family == name) & (low <= apart) & (apart < high)
            found.append(("difficulty", {"family": name, "difficulty": step}, at))
    for what, at in (("in the list", known), ("left out", ~known)):
        found.append(("listed", {"concepts": what}, at & (cell != "none")))
    return (row for row in found if row[2].any())


def _functions(made: Bench, labels: Sequence[Label], grades: Sequence[Grade]) -> Iterator[dict[str, Any]]:
    for function, hard, label, one in zip(made.functions, made.hard, labels, grades, strict=True):
        yield {
            "cell": function.cell, "text": function.draft.text, "code": function.draft.code, "wrong": hard.wrong,
            "apart": hard.apart, "best_concept": hard.concept, "label": label.text, "rule": label.rule, **asdict(one),
        }  # fmt: skip


def _row(grades: Sequence[Grade], at: np.ndarray, apart: np.ndarray, seed: int) -> dict[str, Any]:
    own = [grades[i] for i in np.flatnonzero(at).tolist()]
    row: dict[str, Any] = {"n": len(own), "apart": float(apart[at].mean())}
    for name in GRADES:
        values = np.asarray([getattr(g, name) for g in own])
        values = values[~np.isnan(values)]
        row |= {name: float(values.mean()) if len(values) else None}
        row |= {
            f"{name}_ci": mean_interval(values, seed) if len(values) else (np.nan, np.nan),
            f"n_{name}": len(values),
        }
    for name in ("abstained", "named"):
        values = [getattr(g, name) for g in own if not np.isnan(getattr(g, name))]
        exact = binomtest(int(sum(values)), len(values)).proportion_ci(method="exact") if values else None
        ends = (np.nan, np.nan) if exact is None else (float(exact.low), float(exact.high))
        row |= {name: float(np.mean(values)) if values else None, f"{name}_ci": ends}
    return row
