"""Which checkpoints and which tasks: two tables that a user writes, each row checked before anything is computed."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import polars as pl

from isotrace.base.errors import InputError
from isotrace.transfer.adapting.tasks import Kind


@dataclass(frozen=True)
class Checkpoint:
    """`source`: of a subject. `family`: what it shares with others (corpus, tokeniser, objective), left out: `name`.
    `tokens_seen` in pretraining and `pretrain_loss` in nats a token: NaN where not known. For predictors that read
    features: `dictionary`, trained on general sequences, and `untrained`, the name of the checkpoint that is its
    untrained copy."""

    name: str
    source: str
    family: str
    tokens_seen: float = float("nan")
    pretrain_loss: float = float("nan")
    dictionary: str | None = None
    untrained: str | None = None

    def content(self) -> list[Any]:
        """What outcomes depend on."""
        kept = ("name", "source", "family", "tokens_seen", "pretrain_loss")
        return [type(self).__name__, {name: getattr(self, name) for name in kept}]


@dataclass(frozen=True)
class TaskSpec:
    """`label` of the table `file`; `name`: `group/column` where columns belong together. `split`: a column that names
    parts, None: whole groups are dealt out. `kind`: None, told from the labels."""

    name: str
    file: Path
    label: str
    split: str | None = None
    kind: Kind | None = None


def read_checkpoints(path: Path) -> tuple[Checkpoint, ...]:
    """Of a CSV with the columns `name` and `source`, and any of the others. A source that is a folder may be named from
    the folder of the table on, and so may a dictionary. Raises InputError for other columns, cells that are empty or no
    numbers, one name twice, and an untrained copy that is not in the table or has no dictionary."""
    found: dict[str, Checkpoint] = {}
    for row in _rows(path, Checkpoint, ("name", "source")):
        for name in ("source", "dictionary"):
            if name in row and (path.parent / row[name]).is_dir():
                row[name] = str(path.parent / row[name])
        row["family"] = row.get("family") or row["name"]
        row |= {name: _number(row[name], name, path) for name in ("tokens_seen", "pretrain_loss") if name in row}
        found[row["name"]] = Checkpoint(**row)
    for one in found.values():
        if one.untrained is not None and (one.untrained not in found or found[one.untrained].dictionary is None):
            raise InputError(
                f"{path}: {one.untrained!r}, the untrained copy of {one.name}, is no row with a dictionary: add one."
            )
    return tuple(found.values())


def read_task_list(path: Path) -> tuple[TaskSpec, ...]:
    """Of a CSV with the columns `name`, `file` (from the folder of the table on) and `label`, and any of the others.
    Raises InputError as `read_checkpoints`, and for a file that is not there and a kind that is none."""
    found = []
    for row in _rows(path, TaskSpec, ("name", "file", "label")):
        row["file"] = path.parent / row["file"]
        if not row["file"].is_file():
            raise InputError(f"{path}: there is no file {row['file']} for the task {row['name']}.")
        if row.get("kind") is not None and row["kind"] not in get_args(Kind):
            raise InputError(
                f"{path}: {row['kind']!r} is no kind of task: give {', '.join(get_args(Kind))}, or nothing."
            )
        found.append(TaskSpec(**row))
    return tuple(found)


def _rows(path: Path, kind: type, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    """Empty cells of what may be left out are left out."""
    try:
        frame = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path} cannot be read as CSV ({error}): give a table with {', '.join(needed)}.") from None
    known = [field.name for field in fields(kind)]
    if odd := [name for name in frame.columns if name not in known]:
        raise InputError(f"{path} has a column {odd[0]!r}: give some of {', '.join(known)}.")
    rows = [{name: cell.strip() for name, cell in row.items() if (cell or "").strip()} for row in frame.to_dicts()]
    for number, row in enumerate(rows, start=1):
        if missing := next((name for name in needed if name not in row), None):
            raise InputError(f"{path}, row {number}, has no {missing}: give {', '.join(needed)}.")
    names = [row["name"] for row in rows]
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise InputError(f"{path} names {twice!r} twice: give every row a name of its own.")
    if not rows:
        raise InputError(f"{path} has no row: give one or more.")
    return rows


def _number(cell: str, name: str, path: Path) -> float:
    try:
        return float(cell)
    except ValueError:
        raise InputError(f"{path}: {name} {cell!r} is no number.") from None
