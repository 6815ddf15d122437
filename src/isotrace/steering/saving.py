"""Edits as a folder: `edit.json`, and `weights.safetensors` where there are tensors."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.files import write_whole
from isotrace.base.identity import dumps, to_jsonable
from isotrace.base.settings import STRICT
from isotrace.dictionaries.config import SubjectReference
from isotrace.dictionaries.saving import differences, reference
from isotrace.interventions.plan import decoded, encoded, named
from isotrace.steering.edits import Calibrated, Edits
from isotrace.steering.kinds import EDITS, Edit
from isotrace.subjects.subject import Subject

RECORD, WEIGHTS = "edit.json", "weights.safetensors"


@dataclass(frozen=True, config=STRICT)
class EditsFile:
    """`edit.json`. `edits`: one object each, its `kind` and what the class of that name is made of; a tensor is named
    by the hash of its content, a dictionary by its identity. `data`: identity of the data they were fitted on."""

    format: Literal["isotrace-edits"]
    format_version: Literal[1]
    method: str
    settings: dict[str, Any]
    confounds: dict[str, float | None]
    data: str | None
    dose: dict[str, Any] | None
    subject: SubjectReference
    edits: tuple[dict[str, Any], ...]
    weights_sha256: str | None


FILE = TypeAdapter(EditsFile)


def save_edits(edits: Edits, folder: str | Path, subject: Subject) -> Path:
    """Write the folder. Raises as `Edits.check`."""
    edits.check(subject)
    folder, tensors = Path(folder), dict[str, Tensor]()
    rows = tuple(
        {"kind": edit.kind} | {f.name: encoded(getattr(edit, f.name), tensors) for f in fields(edit)}
        for edit in edits.edits
    )
    weights = save(tensors) if tensors else None
    record = EditsFile(
        "isotrace-edits", 1, edits.method, to_jsonable(edits.settings), to_jsonable(edits.confounds), edits.data,
        None if edits.dose is None else to_jsonable(asdict(edits.dose)), reference(subject), rows,
        None if weights is None else hashlib.sha256(weights).hexdigest(),
    )  # fmt: skip
    if weights is not None:
        write_whole(folder / WEIGHTS, weights)
    write_whole(folder / RECORD, (dumps(asdict(record), indent=2) + "\n").encode())
    return folder


def load_edits(folder: str | Path, subject: Subject, dictionaries: Iterable[Any] = ()) -> Edits:
    """Raises InputError for a folder without edits, a damaged file, an unknown key or kind, a dictionary that is not
    among those given, and for another subject than theirs; the message says what differs."""
    folder = Path(folder)
    record = read_record(folder)
    if differing := differences(record.subject, subject):
        raise InputError(
            f"{folder.name} was made for {record.subject.source}, not for {subject.source}: {differing}. "
            "Use its own subject."
        )
    known = named(dictionaries, _weights(folder, record.weights_sha256))
    confounds = {name: float("nan") if value is None else value for name, value in record.confounds.items()}
    try:
        rows = tuple(_edit(row, known) for row in record.edits)
        dose = None if record.dose is None else Calibrated(**record.dose)
        found = Edits(rows, record.method, record.settings, confounds, record.data, dose)
        found.check(subject)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{folder / RECORD} is damaged ({error}): save the edits again.") from None
    return found


def read_record(folder: Path) -> EditsFile:
    """`edit.json`, validated. Raises InputError, see `load_edits`."""
    try:
        return FILE.validate_python(json.loads((folder / RECORD).read_bytes()))
    except OSError:
        raise InputError(f"{folder} holds no {RECORD}: give the folder that Edits.save wrote.") from None
    except ValueError as error:  # ValidationError, JSONDecodeError and UnicodeDecodeError are ValueErrors
        what = error.errors()[0] if isinstance(error, ValidationError) else None
        where = str(error) if what is None else ".".join(map(str, what["loc"])) + ": " + what["msg"]
        raise InputError(f"{folder / RECORD} is damaged or of another version ({where}): save it again.") from None


def _weights(folder: Path, sha256: str | None) -> dict[str, Tensor]:
    if sha256 is None:
        return {}
    try:
        content = (folder / WEIGHTS).read_bytes()
        if hashlib.sha256(content).hexdigest() == sha256:
            return {name: tensor.clone() for name, tensor in load(content).items()}  # aligned, as in Plan.load
    except (OSError, SafetensorError):
        pass
    raise InputError(f"{folder / WEIGHTS} is missing, truncated or altered: save the edits again.")


def _edit(row: dict[str, Any], known: dict[str, Any]) -> Edit:
    kind = EDITS[row["kind"]]
    given = {name: decoded(value, known) for name, value in row.items() if name != "kind"}
    return kind(**given)
