"""What checkpoints reached: one row of numbers for every metric of a run, in a Parquet file that only grows.

Rows are kept under the hash of their run's settings, so that a killed computation goes on behind what it has stored.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl

from isotrace.base.errors import InputError, RunError
from isotrace.base.files import locked, write_whole
from isotrace.base.identity import identity

FILE, KEY = "outcomes.parquet", "key"


@dataclass(frozen=True)
class OutcomeRow:
    """One metric of one run on a task's test part.

    checkpoint: a subject's source and its step. family: what it shares with others (corpus, tokeniser, objective).
    params: weights. tokens_seen: in pretraining. pretrain_loss: nats per token. task: `group/column` where columns
    belong together, else a name, see `task_group`. kind: of the labels (`regression`, `class`). n_train: labels
    trained on. split, method, seed, metric: by name. value, value_ci_low, value_ci_high: the metric and its 95 %
    interval. seconds, flops: of the run.

    What does not exist is NaN (the pretraining loss of a forest); 0 is a number. Raises InputError for a value of
    another type, an empty name, a negative count and an interval that is upside down.
    """

    checkpoint: str
    family: str
    params: int
    tokens_seen: float
    pretrain_loss: float
    task: str
    kind: str
    n_train: int
    split: str
    method: str
    seed: int
    metric: str
    value: float
    value_ci_low: float
    value_ci_high: float
    seconds: float
    flops: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not field.type:
                raise InputError(f"{field.name} {value!r} of an outcome is no {field.type.__name__}: convert it first.")  # pyright: ignore
            if value == "":
                raise InputError(f"an outcome without a {field.name}: name it.")
        for name in ("params", "tokens_seen", "n_train", "seed", "seconds", "flops"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} {getattr(self, name)} of an outcome is negative: give what was counted.")
        if self.value_ci_low > self.value_ci_high:
            raise InputError(f"the interval of {self.metric} ends below its beginning: exchange the two.")

    @property
    def place(self) -> tuple[Any, ...]:
        """What may stand in a table once."""
        return tuple(getattr(self, name) for name in PLACE)


PLACE = ("checkpoint", "task", "n_train", "split", "method", "seed", "metric")
_KINDS: dict[Any, type[pl.DataType]] = {str: pl.String, int: pl.Int64, float: pl.Float64}
SCHEMA = {field.name: _KINDS[field.type] for field in fields(OutcomeRow)}


def task_group(task: str) -> str:
    """`tox21` of `tox21/NR-AR`: columns of one table are never split between fit and test of a predictor."""
    return task.partition("/")[0]


class OutcomeTable:
    """The table in `folder`, open for writing, see `opened`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        empty = pl.DataFrame(schema={KEY: pl.String, **SCHEMA})
        self._kept = _read(self.path) if self.path.exists() else empty
        self._places = set(self._kept.select(PLACE).iter_rows())

    @property
    def frame(self) -> pl.DataFrame:
        """The columns of `OutcomeRow`."""
        return self._kept.drop(KEY)

    def computed(self, settings: Any, compute: Callable[[], Sequence[OutcomeRow]]) -> list[OutcomeRow]:
        """The rows stored for `settings`, or those of `compute()`, which are stored all together or not at all.

        settings: all that the rows depend on, whatever has an identity. Raises InputError for no row, and where the
        table holds such a row of other settings already.
        """
        key = identity(settings)
        if key in self._kept[KEY]:
            return [OutcomeRow(**row) for row in self._kept.filter(pl.col(KEY) == key).drop(KEY).iter_rows(named=True)]
        rows = list(compute())
        places = [row.place for row in rows]
        if not rows:
            raise InputError("a run gave no outcome: give at least one row, NaN where its metric is not defined.")
        if twice := (self._places & {*places}) or {place for place in places if places.count(place) > 1}:
            raise InputError(
                f"{self.path} has an outcome of {dict(zip(PLACE, min(twice), strict=True))} already: settings that "
                "differ in something else want a table of their own."
            )
        new = pl.DataFrame([{KEY: key, **asdict(row)} for row in rows], schema=self._kept.schema)
        self._kept = pl.concat([self._kept, new])
        self._places |= {*places}
        write_whole(self.path, self._kept.write_parquet)
        return rows


@contextmanager
def opened(folder: str | Path) -> Iterator[OutcomeTable]:
    """The table in `folder`, made if it is not there, for this process alone. Raises RunError while another one has it,
    and for a file with other columns."""
    with locked(Path(folder)):
        yield OutcomeTable(Path(folder))


def read_outcomes(folder: str | Path) -> pl.DataFrame:
    """The columns of `OutcomeRow`, in the order of writing. Raises InputError where there is no table, RunError for one
    with other columns."""
    path = Path(folder) / FILE
    if not path.exists():
        raise InputError(f"{folder} holds no {FILE}: give the folder of a table of outcomes.")
    return _read(path).drop(KEY)


def _read(path: Path) -> pl.DataFrame:
    try:
        found = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(f"{path} cannot be read ({error}): restore it or choose another folder.") from None
    if dict(found.schema) != {KEY: pl.String, **SCHEMA}:
        odd = {*found.schema.items()} ^ {(KEY, pl.String()), *((name, kind()) for name, kind in SCHEMA.items())}
        names = ", ".join(sorted({name for name, _ in odd})) or "their order"
        raise RunError(f"{path} is no table of outcomes (columns: {names}): choose another folder.")
    return found
