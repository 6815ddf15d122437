"""An adapted subject as a folder that every command opens: config, weights, tokenizer, `subject.json`, and a probe
for each property in `probes/`, so that `--target probe:LABEL` finds it."""

import shutil
from pathlib import Path

from isotrace.base.progress import slug
from isotrace.subjects.loading import quiet
from isotrace.subjects.sources.source import weight_files, weights_hash, write_record
from isotrace.subjects.subject import Subject
from isotrace.transfer.adapting.head import Readout
from isotrace.transfer.adapting.tasks import TaskTable


def save_adapted(
    subject: Subject, readout: Readout, table: TaskTable, folder: Path, *, by: str, frozen: bool
) -> list[str]:  # fmt: skip
    """Names of the files written, as seen from `folder`. `frozen`: the weights are those that were loaded, and are
    copied as they are, so that dictionaries of the subject fit."""
    before = {path for path in folder.rglob("*") if path.is_file()}
    if frozen and subject.files.adapter is None:
        for path in [subject.files.folder / "config.json", *weight_files(subject.files.folder)]:
            shutil.copyfile(path, folder / path.name)
        for index in subject.files.folder.glob("*.index.json"):
            shutil.copyfile(index, folder / index.name)
    else:
        _save_model(subject, folder)
    subject.tokenizer.save_pretrained(folder)
    if subject.files.domain is not None:
        write_record(folder, subject.files.domain)
    rows = table.rows("train", "valid")
    for prop, name in zip(table.properties, probe_names(table), strict=True):
        readout.probe(prop, table, rows, weights_hash(folder), by).save(folder / "probes" / name)
    after = {path for path in folder.rglob("*") if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in after - before)


def probe_names(table: TaskTable) -> list[str]:
    """Folder in `probes/` of each property."""
    names = [slug(prop.label) for prop in table.properties]
    return [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names, start=1)]


@quiet()
def _save_model(subject: Subject, folder: Path) -> None:
    family = subject.family
    if family.restore:
        family.restore(subject.model)
    try:
        subject.model.save_pretrained(folder)
    finally:
        if family.prepare:
            family.prepare(subject.model)
