"""From names to the objects behind them, and back to what a manifest says of them."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isotrace.base.errors import InputError, RunError, SubjectError
from isotrace.base.identity import Source, identity
from isotrace.base.runs import Run, described, open_run, read_manifest
from isotrace.datasets.inputs import read_inputs
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.saving import load_dictionary
from isotrace.domains.domain import Domain, domain_of
from isotrace.subjects.subject import Subject, load_subject

if TYPE_CHECKING:
    from isotrace.verbs.request import OnDictionary, OnSubject


def subject_of(request: "OnSubject") -> Subject:
    """Raises InputError for a device, domain or dtype that is given beside a loaded subject, which has its own."""
    if not isinstance(request.subject, Subject):
        place, dtype = request.device, request.subject_dtype
        return load_subject(request.subject, domain=request.domain, device=place, dtype=dtype)
    for name in ("device", "domain", "subject_dtype"):
        if getattr(request, name) != type(request).model_fields[name].default:
            name = name.replace("_", "-")
            raise InputError(f"--{name} is for a subject that is loaded here: give it to load_subject.")
    return request.subject


def subjects_of(given: Sequence[Any], domain: str | None, device: str) -> dict[str, Subject]:
    """By the name they were given by. Raises InputError for one that is given twice."""
    names = [label(one) for one in given]
    if repeated := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise InputError(f"{repeated!r} is given twice: name each subject once.")
    return {
        name: one if isinstance(one, Subject) else load_subject(one, domain=domain, device=device)
        for name, one in zip(names, given, strict=True)
    }


def domain_of_subject(subject: Subject) -> Domain:
    """Raises SubjectError where it is not known."""
    if subject.files.domain is None:
        raise SubjectError(f"{subject.source} does not say what its tokens stand for: give --domain.")
    return domain_of(subject.files.domain)


def dictionary_of(source: Any, subject: Subject) -> Dictionary:
    return source if isinstance(source, Dictionary) else load_dictionary(source, subject)


def named(value: Any, column: str | None = None) -> Path | str:
    """What a manifest says of what a number depends on: a Path where it is a file or folder, else text. What has no
    name is told by a hash of its content."""
    if isinstance(value, str | Path):
        return Path(value) if os.path.exists(value) else str(value)
    if isinstance(value, Subject):
        return value.source
    if isinstance(value, Dictionary):
        what, content = value.config.architecture, value
    else:
        rows = read_inputs(value, column=column)[0]
        what, content = f"{rows.height} sequences", rows.write_json()
    return f"{what}, sha256 {identity(content)[:16]}"


def opened(
    request: "OnDictionary", out: Path | None, subject: Subject, *dictionaries: Dictionary, **inputs: Path
) -> AbstractContextManager[Run | None]:
    """The folder `out`, opened for what is asked, None where nothing is to be saved. Raises as `open_run` does."""
    if out is None:
        return nullcontext()
    return open_run(out, **run_of(request, subject, *dictionaries, **inputs), overwrite=request.overwrite)


def run_of(request: "OnDictionary", subject: Subject, *dictionaries: Dictionary, **inputs: Path) -> dict[str, Any]:
    """What the run depends on; `inputs` are files beside the usual."""
    given = request.dictionary if isinstance(request.dictionary, tuple) else None
    data = "of the dictionary's shelf" if request.data is None else named(request.data, request.column)
    known = {"subject": Source.of(subject.source, subject), "data": data, **inputs}
    for n, (source, one) in enumerate(zip(given or (request.dictionary,), dictionaries, strict=True), start=1):
        known[f"dictionary {n}" if given else "dictionary"] = Source.of(label(source), one)
    return {"command": request.command, "seed": getattr(request, "seed", 0), "inputs": known}


def trained_on(dictionaries: Mapping[str, Dictionary], data: Any, column: str | None) -> list[str]:
    """A warning for every named dictionary that was trained on this data, as the manifest beside it says."""
    here, warnings = described({"data": named(data, column)})["data"]["sha256"], []
    for name, dictionary in dictionaries.items():
        try:
            there = read_manifest(dictionary.folder or "")["inputs"].get("data", {})
        except RunError:  # made in memory, or not in the folder of its training
            continue
        if there.get("sha256") == here:
            warnings.append(f"{name} was trained on this data: what is found on it may not hold elsewhere, give other.")
    return warnings


def label(source: Any) -> str:
    """The name it was given by, or what it holds."""
    return str(source if isinstance(source, str | Path) else named(source))
