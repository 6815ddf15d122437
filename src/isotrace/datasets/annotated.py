"""What is known of the sequences before any activation is: tokens, readings, concepts, groups and the two sides.

Sequences are kept in the order of their length in tokens, so that passes of the subject need no padding.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import polars as pl
import torch

from isotrace.base.errors import InputError
from isotrace.datasets.concept_files import ConceptSource
from isotrace.datasets.concept_table import ConceptTable
from isotrace.datasets.inputs import rejects_frame
from isotrace.datasets.reading.cells import column_of, is_missing, plain
from isotrace.domains.domain import Concept, Domain, Labels, Reading
from isotrace.stats.splits import deal
from isotrace.subjects.subject import Batch, Subject


@dataclass(frozen=True, eq=False)
class Data:
    """`index[i]` is the row of the input that sequence i was, `ids[i]` its token ids int64, `held` bool `[sequences]`
    True where a sequence serves to score and not to choose."""

    domain: Domain
    index: tuple[int, ...]
    names: tuple[str | None, ...]
    readings: tuple[Reading, ...]
    ids: tuple[np.ndarray, ...]
    groups: tuple[str, ...]
    held: np.ndarray
    table: ConceptTable
    rejects: pl.DataFrame

    @property
    def special(self) -> np.ndarray:
        """bool `[tokens]`, or `[sequences]` of which none is special."""
        if self.whole:
            return np.zeros(len(self.ids), dtype=bool)
        return np.asarray([unit.kind == "special" for reading in self.readings for unit in reading.units], dtype=bool)

    @property
    def whole(self) -> bool:
        """Whether a sequence has one row, see `by_sequence`."""
        return self.table.sizes is not None

    def by_sequence(self) -> "Data":
        """As features of pooled hookpoints see it: a sequence has one row, which carries what a token of it does."""
        return replace(self, table=self.table.by_sequence())

    def batches(self, tokens: int) -> Iterable[tuple[int, Batch]]:
        """(number of the first sequence, unpadded batch) in order, about `tokens` tokens each."""
        start = 0
        while start < len(self.ids):
            length = len(self.ids[start])
            stop = start + 1
            while stop < len(self.ids) and len(self.ids[stop]) == length and (stop - start + 1) * length <= tokens:
                stop += 1
            ids = torch.from_numpy(np.stack(self.ids[start:stop]))
            yield start, Batch(ids, torch.ones_like(ids, dtype=torch.bool), (), ())
            start = stop

    def sequences(self) -> pl.DataFrame:
        side = ["held-out" if held else "selection" for held in self.held]
        texts = [reading.text for reading in self.readings]
        schema = {"index": pl.Int64, "name": pl.String, "sequence": pl.String, "group": pl.String, "side": pl.String}
        return pl.DataFrame([self.index, self.names, texts, self.groups, side], schema=schema)


def read(subject: Subject, domain: Domain, text: str) -> tuple[np.ndarray, Reading]:
    """(token ids, reading) of one sequence. Raises InputError if subject or domain cannot read it."""
    batch = subject.tokenize([text])
    return batch.ids[0].cpu().numpy(), domain.read(text, subject.tokens(batch.ids[0]), batch.offsets[0])


def prepare(
    subject: Subject,
    domain: Domain,
    rows: pl.DataFrame,
    sources: Sequence[ConceptSource],
    *,
    seed: int,
    group_column: str | None = None,
    rejects: pl.DataFrame | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Data:
    """`rows` hold `index`, `name`, `sequence` and further columns. Half of the groups, by `seed`, are held out.

    A group is what `Domain.groups` says, or the value in `group_column`. Raises InputError if nothing can be read,
    all sequences form one group, or two concepts have one name.
    """
    concepts: tuple[Concept, ...] = domain.concepts + tuple(c for source in sources for c in source.concepts)
    names = [concept.name for concept in concepts]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise InputError(f"two concepts are called {twice[0]!r}: rename one in its file.")
    column = None if group_column is None else column_of(rows, group_column, "--group")
    refused = [] if rejects is None else list(rejects.rows())
    found = []
    for row in progress(rows.iter_rows(named=True)):
        text = (row["sequence"] or "").strip()
        try:
            ids, reading = read(subject, domain, text)
            labels = [domain.label(reading), *(source.label(row["index"], reading) for source in sources)]
            group = None if column is None else plain(row[column])
            if column is not None and is_missing(group):
                raise InputError(f"column {group_column!r} holds no group for it: fill it.")
            found.append((row["index"], row["name"], reading, ids, _joined(labels), group))
        except InputError as error:
            refused.append((row["index"], text, str(error)))
    if not found:
        first = f"; first reason: {refused[0][2]}" if refused else ""
        raise InputError(f"no sequence can be annotated{first}")
    found.sort(key=lambda one: len(one[3]))
    index, given, readings, ids, labels, groups = zip(*found, strict=True)
    groups = domain.groups([r.text for r in readings]) if group_column is None else [g.strip() for g in groups]
    held = deal(groups, (0.5, 0.5), seed) == 1
    table = ConceptTable.of(concepts, [len(i) for i in ids], labels)
    return Data(domain, index, given, readings, ids, tuple(groups), held, table, rejects_frame(refused))


def _joined(labels: Sequence[Labels]) -> Labels:
    instances, offset = [], 0
    for part in labels:
        instances += [(concept + offset, positions) for concept, positions in part.instances]
        offset += len(part.numbers)
    return Labels(tuple(instances), np.concatenate([part.numbers for part in labels]))


def untestable(table: ConceptTable, held: np.ndarray, special: np.ndarray, min_positive: int) -> list[str | None]:
    """Why a concept cannot be tested, None where it can; token concepts first, then those of sequences."""
    reasons: list[str | None] = []
    counts = [(side.positive(), side.n_tokens) for side in (table.take(np.flatnonzero(h)) for h in (~held, held))]
    total = table.positive()
    bounds = table.instance_ptr[table.concept_ptr]
    members = [table.tokens[first:last] for first, last in pairwise(bounds)]
    for c in range(len(table.token_concepts)):
        if total[c] == 0:
            reasons.append("no token carries it")
        elif total[c] == table.n_tokens:
            reasons.append("every token carries it")
        elif special[members[c]].all():
            reasons.append("only special tokens carry it, which keep their labels when labels are shuffled")
        elif any(positive[c] < min_positive for positive, _ in counts):
            reasons.append(f"on fewer than {min_positive} tokens of a side")
        elif any(positive[c] == n for positive, n in counts):
            reasons.append("every token of a side carries it")
        else:
            reasons.append(None)
    for concept, column in zip(table.sequence_concepts, table.numbers.T, strict=True):
        sides = [column[~held][~np.isnan(column[~held])], column[held][~np.isnan(column[held])]]
        least = [min((s == 1).sum(), (s == 0).sum()) if concept.kind == "class" else len(s) for s in sides]
        if not min(len(s) for s in sides):
            reasons.append("not known of any sequence of a side")
        elif concept.kind == "class" and any(len(np.unique(s)) < 2 for s in sides):
            reasons.append("one class only on a side")
        elif concept.kind == "value" and any(len(np.unique(s)) < 2 for s in sides):
            reasons.append("the same value everywhere on a side")
        elif min(least) < (10 if concept.kind == "class" else min_positive):
            reasons.append("too few sequences of a class on a side" if concept.kind == "class" else "too few values")
        else:
            reasons.append(None)
    return reasons
