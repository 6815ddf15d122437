"""What a direction is fitted on: labelled sequences in two sides, with their pairs, groups and confounds.

Sides: of two classes each one, of more classes one against the rest, of numbers the upper against the lower tercile
(the middle belongs to neither). A confound is what the domain counts in a sequence: its length, and its tokens by kind
(ring, branch, …) and by text. Labels that follow a confound give a direction of the confound, so confounds are held
fixed in one of two ways:

    residual  the side of a sequence is regressed on the confounds, and what is left weighs it: the coefficient of the
              side in a regression of the activations on side and confounds together (Frisch, Waugh, Lovell)
    match     positives and negatives are paired by confounds and all others left out
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from scipy.optimize import linear_sum_assignment

from isotrace.base.errors import InputError
from isotrace.base.identity import identity
from isotrace.base.progress import Progress, silent
from isotrace.datasets.annotated import read
from isotrace.datasets.inputs import read_inputs
from isotrace.datasets.reading.cells import column_of, is_missing, plain
from isotrace.datasets.reading.yes_no import yes_no
from isotrace.datasets.tasks import Example, labelled
from isotrace.domains.domain import Domain, domain_of
from isotrace.stats.splits import deal
from isotrace.subjects.subject import Subject

CALIPER = 0.25
"""Furthest that two matched sequences may stand apart in a confound, in its standard deviations."""
COMMON = 0.05
"""Tokens that stand in a smaller share of the sequences are no confound of their own."""
LENGTH = "length"


@dataclass(frozen=True, eq=False)
class Contrast:
    """`values` float64 `[n]`: the number, or the index in `classes`, of every example. `side` int64 `[n]`: 1, −1, or 0
    for neither. `pairs` int64 `[pairs, 2]`: (positive, negative) rows that belong together. `confounds`: name →
    float64 `[n]`. `held`: those that `residual` holds fixed. `rejects` (index, text, reason). `marks`: column of yes
    and no → float64 `[n]`, 1, 0 or NaN."""

    label: str
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    values: np.ndarray
    side: np.ndarray
    pairs: np.ndarray
    confounds: dict[str, np.ndarray]
    rejects: tuple[tuple[int, str, str], ...] = ()
    held: tuple[str, ...] = field(default=())
    marks: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def read(
        cls, subject: Subject, data: Any, label: str, *, positive: str | None = None, group: str | None = None,
        pair: str | None = None, column: str | None = None, kind: Literal["class", "regression"] | None = None,
        domain: str | None = None, progress: Progress = silent,
    ) -> Self:  # fmt: skip
        """`data`: whatever isotrace reads a table from; `label`, `group`, `pair`: columns of it. Without `pair`,
        sequences of one group are paired, those nearest in length first. `positive`: the class of the positive side,
        left out the last of two.

        Rows that cannot be read or have no label go to `rejects`. Raises InputError for a column that is not there, no
        usable row, one class, more than two without `positive`, a label of another kind, numbers without terciles,
        and a pair that is not one positive and one negative."""
        found = domain or subject.files.domain
        if found is None:
            raise InputError(f"{subject.source} names no domain, so nothing is known of its tokens: give --domain.")
        reader, (rows, refused) = domain_of(found), read_inputs(data, column=column)
        made = labelled(
            subject, reader, rows, label=label, kind=kind, split=None, group=group, mutations=None, rejects=refused,
            mixed=True, progress=lambda items: progress(items, "reading"),
        )  # fmt: skip
        if made.kind not in ("class", "regression"):
            raise InputError(f"column {label!r} holds labels of tokens: steering needs one label a sequence.")
        values = np.asarray([e.y for e in made.examples], np.float64)
        side = _of_classes(values, made.classes, positive, label) if made.classes else _of_numbers(values, label)
        places = np.searchsorted(rows["index"].to_numpy(), [e.index for e in made.examples])
        contrast = cls(label, made.classes, made.examples, values, side, np.zeros((0, 2), np.int64),
                       _confounds(subject, reader, made.examples), made.rejects,
                       marks={name: column[places] for name, column in yes_no(rows).items()})  # fmt: skip
        if pair is None:
            return replace(contrast, pairs=contrast._by_group())
        cells = dict(zip(rows["index"], rows[column_of(rows, pair, "--pair")], strict=True))
        return replace(contrast, pairs=contrast._named([plain(cells[e.index]) for e in made.examples], pair))

    @classmethod
    def of(cls, subject: Subject, sequences: Sequence[str], labels: Sequence[Any], **columns: Sequence[Any]) -> Self:
        """From lists: `groups` and `pairs` are names, one of each a sequence. Else as `read`."""
        given = {name: columns.pop(name) for name in ("groups", "pairs") if name in columns}
        lengths = {len(part) for part in (sequences, labels, *given.values())}
        if len(lengths) > 1:
            raise InputError(f"sequences, labels, groups and pairs differ in number ({sorted(lengths)}): one each.")
        table = pl.DataFrame({"sequence": [*sequences], "label": [*labels], **given}, strict=False)
        named = {name.removesuffix("s"): name for name in given}
        return cls.read(subject, table, "label", **named, **columns)  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def groups(self) -> np.ndarray:
        return np.asarray([e.group for e in self.examples], dtype=object)

    @property
    def positive(self) -> np.ndarray:
        """Rows."""
        return np.flatnonzero(self.side > 0)

    @property
    def negative(self) -> np.ndarray:
        return np.flatnonzero(self.side < 0)

    @cached_property
    def weights(self) -> np.ndarray:
        """float64 `[n]`, of sum 0: Σ weights · h is the difference of the two sides' means, confounds that are `held`
        being equal. Raises InputError where these say all about the side."""
        chosen = self.side != 0
        left = _left(self.side[chosen].astype(float), [self.confounds[name][chosen] for name in self.held])
        scale = left @ (self.side[chosen] / 2)  # the sides are 2 apart, the means are to be 1
        if scale < 1e-9 * chosen.sum():
            raise InputError(f"{', '.join(self.held)} say which side a sequence is on: no direction is left to find.")
        weights = np.zeros(len(self))
        weights[chosen] = left / scale
        return weights

    def residual(self, *confounds: str) -> Self:
        """The same with `confounds` held fixed, by default the length and the kinds of tokens."""
        return replace(self, held=self._named_confounds(confounds))

    def match(self, *confounds: str, caliper: float = CALIPER) -> Self:
        """As many positives as negatives, those that agree best in `confounds`, by default the length and the kinds of
        tokens, no further apart than `caliper` standard deviations in any; they are the pairs, and the rest is on
        neither side. Raises InputError where none agree."""
        names = self._named_confounds(confounds)
        table = np.stack([self.confounds[name] for name in names], 1)
        table = table / np.maximum(table[self.side != 0].std(0), 1e-12)
        apart = np.abs(table[self.positive][:, None] - table[self.negative][None])
        far = (apart > caliper).any(-1)
        rows, columns = linear_sum_assignment(apart.sum(-1) + far * 1e6)
        kept = ~far[rows, columns]
        if not kept.any():
            raise InputError(f"no positive and negative agree in {', '.join(names)}: widen the caliper or name fewer.")
        pairs = np.stack([self.positive[rows[kept]], self.negative[columns[kept]]], 1)
        side = np.zeros_like(self.side)
        side[pairs[:, 0]], side[pairs[:, 1]] = 1, -1
        return replace(self, side=side, pairs=pairs)

    def rows(self, chosen: np.ndarray) -> Self:
        """Of these rows alone, in their order. Raises InputError where a side is left empty."""
        new = np.full(len(self), -1)
        new[chosen] = np.arange(len(chosen))
        pairs, confounds = new[self.pairs].reshape(-1, 2), {k: v[chosen] for k, v in self.confounds.items()}
        confounds = {k: v for k, v in confounds.items() if v.std() > 0}  # what does not vary here confounds nothing
        part = replace(
            self, examples=tuple(self.examples[i] for i in chosen), values=self.values[chosen], side=self.side[chosen],
            pairs=pairs[(pairs >= 0).all(1)], confounds=confounds, held=tuple(k for k in self.held if k in confounds),
            marks={name: column[chosen] for name, column in self.marks.items()},
        )  # fmt: skip
        part._check()
        return part

    def split(self, shares: Sequence[float] = (0.5, 0.5), seed: int = 0) -> tuple[Self, ...]:
        """Parts that share no group. Raises InputError for too few groups, and for a part of one side."""
        where = deal(self.groups.tolist(), shares, seed)
        return tuple(self.rows(np.flatnonzero(where == part)) for part in range(len(shares)))

    def shuffled(self, seed: int) -> Self:
        """Labels dealt out anew among the sequences that are on a side; of every pair a coin says which is positive."""
        rng, chosen = np.random.default_rng((seed, 4)), np.flatnonzero(self.side)
        source, side, values = rng.permutation(chosen), self.side.copy(), self.values.copy()
        side[chosen], values[chosen] = self.side[source], self.values[source]
        if not len(self.pairs):
            return replace(self, side=side, values=values)
        pairs = rng.permuted(self.pairs, axis=1)
        for places, sign in ((pairs[:, 0], 1), (pairs[:, 1], -1)):
            side[places] = sign
        return replace(self, side=side, values=values, pairs=pairs)

    def content(self) -> Any:
        """What its `identity` is of: texts, labels, sides, pairs, what is held, and columns of yes and no."""
        return [
            "contrast", [e.text for e in self.examples], self.values, self.side, self.pairs, self.groups.tolist(),
            self.held, *([self.marks] if self.marks else []),
        ]  # fmt: skip

    @property
    def sha256(self) -> str:
        return identity(self)

    def need_sides(self, method: str) -> None:
        """Raises InputError where confounds are held by weights, which two sets cannot carry."""
        if self.held:
            raise InputError(f"{method} compares two sets, which weights cannot correct: match the confounds instead.")

    def need_pairs(self, method: str, least: int = 2) -> np.ndarray:
        """`pairs`. Raises InputError for fewer than `least`."""
        if len(self.pairs) < least:
            raise InputError(
                f"{method} needs {least} pairs of a positive and a negative, and there are {len(self.pairs)}: name "
                "them with --pair, or give groups that hold both."
            )
        return self.pairs

    def _named_confounds(self, names: Sequence[str]) -> tuple[str, ...]:
        usual = [name for name in self.confounds if not name.startswith("token ")]
        for name in names:
            if name not in self.confounds:
                raise InputError(f"no confound {name!r}: give one of {', '.join(self.confounds)}.")
        return tuple(names or usual)

    def _check(self) -> None:
        for rows, which in ((self.positive, "positive"), (self.negative, "negative")):
            if not len(rows):
                raise InputError(f"no {which} sequence is left: a direction needs both sides.")

    def _by_group(self) -> np.ndarray:
        """In every group the i-th shortest positive with the i-th shortest negative."""
        sides: dict[str, tuple[list[int], list[int]]] = {}
        for i in sorted(np.flatnonzero(self.side).tolist(), key=lambda i: len(self.examples[i].ids)):
            sides.setdefault(self.examples[i].group, ([], []))[int(self.side[i] < 0)].append(i)
        pairs = [pair for two in sides.values() for pair in zip(*two, strict=False)]
        return np.asarray(pairs, np.int64).reshape(-1, 2)

    def _named(self, names: Sequence[str | None], column: str) -> np.ndarray:
        members: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            if not is_missing(name) and self.side[i]:
                members.setdefault(str(name), []).append(i)
        for name, rows in members.items():
            if sorted(self.side[rows].tolist()) != [-1, 1]:
                raise InputError(
                    f"pair {name!r} of column {column!r} is not one positive and one negative: name pairs."
                )
        pairs = [sorted(rows, key=lambda i: -self.side[i]) for rows in members.values()]
        return np.asarray(pairs, np.int64).reshape(-1, 2)


def _of_classes(values: np.ndarray, classes: tuple[str, ...], positive: str | None, label: str) -> np.ndarray:
    if len(classes) < 2:
        raise InputError(f"column {label!r} has one class only ({', '.join(classes)}): a direction needs two sides.")
    if positive is None and len(classes) > 2:
        raise InputError(f"column {label!r} has {len(classes)} classes: say with --positive which of them is wanted.")
    wanted = classes[-1] if positive is None else positive
    if wanted not in classes:
        raise InputError(f"column {label!r} has no class {wanted!r}: give one of {', '.join(classes)}.")
    return np.where(values == classes.index(wanted), 1, -1)


def _of_numbers(values: np.ndarray, label: str) -> np.ndarray:
    low, high = np.quantile(values, (1 / 3, 2 / 3))
    if not low < high:
        raise InputError(f"a third of column {label!r} or more is {low:g}: its terciles cannot be told apart.")
    return (values >= high).astype(np.int64) - (values <= low)


def counts(subject: Subject, domain: Domain, text: str) -> Counter[str]:
    """Length, tokens by kind and by text, of one sequence."""
    units = [unit for unit in read(subject, domain, text)[1].units if unit.kind != "special"]
    found = Counter({LENGTH: len(units)})
    found.update(unit.kind for unit in units)
    found.update(f"token {unit.text}" for unit in units)
    return found


def _confounds(subject: Subject, domain: Domain, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Length, tokens by kind and by text where they are common; none that is constant or another's double."""
    rows = [counts(subject, domain, example.text) for example in examples]
    table: dict[str, np.ndarray] = {}
    names = sorted({name for found in rows for name in found})
    for name in sorted(names, key=lambda name: (name != LENGTH, name.startswith("token "))):
        column = np.asarray([found[name] for found in rows], np.float64)
        twin = any(np.array_equal(column, other) for other in table.values())
        if column.std() > 0 and not twin and (not name.startswith("token ") or (column > 0).mean() >= COMMON):
            table[name] = column
    return table


def _left(y: np.ndarray, confounds: Sequence[np.ndarray]) -> np.ndarray:
    """What a least-squares fit of y on a constant and `confounds` leaves."""
    design = np.stack([np.ones_like(y), *((c - c.mean()) / max(c.std(), 1e-12) for c in confounds)], 1)
    return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
