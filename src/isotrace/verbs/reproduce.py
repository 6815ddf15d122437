"""A published table, computed again."""

from pathlib import Path
from typing import Annotated, Any

from isotrace.base.errors import InputError
from isotrace.verbs.request import PLACE, REPEATED, Answer, InFolder, Progress, Seeded, verb


class ReproduceRequest(InFolder, Seeded):
    name: Annotated[str | None, PLACE] = None
    """Name of a study; left out, they are listed."""
    out: Path | None = None
    """Run folder; runs/NAME if left out."""
    full: bool = False
    """Full settings (hours) instead of the quick ones."""
    dictionary: Annotated[tuple[str, ...], REPEATED] = ()
    """SUBJECT=FOLDER: a dictionary that is not bundled; repeatable."""


@verb(ReproduceRequest)
def reproduce(request: ReproduceRequest, progress: Progress) -> Answer:
    """Compute one of the tables of the documentation again; quick settings take minutes on two cores."""
    import polars as pl

    from isotrace.base.runs import open_run, to_jsonable
    from isotrace.studies import STUDIES, Setting

    if request.name is None:
        return Answer({"studies": {study.name: study.about for study in STUDIES.values()}})
    chosen = STUDIES[request.name]
    given = [text.partition("=") for text in request.dictionary]
    if wrong := [source for source, _, folder in given if not folder]:
        raise InputError(f"--dictionary {wrong[0]!r}: give SUBJECT=FOLDER.")
    folder = request.out or Path("runs") / request.name
    with open_run(
        folder, command=request.command, seed=request.seed, inputs={"study": request.name}, overwrite=request.overwrite
    ) as run:
        work = folder.with_name(f"{folder.name}.work")
        work.mkdir(parents=True, exist_ok=True)
        dictionaries = {source: where for source, _, where in given}
        outcome = chosen.run(Setting(not request.full, work, request.seed, progress, dictionaries))
        for title, rows in outcome.tables.items():
            flat = [{key: cell(value) for key, value in row.items()} for row in rows]
            run.table(title, pl.DataFrame(flat, infer_schema_length=None))
        found = {"name": request.name, "quick": not request.full, "tables": outcome.tables, "notes": outcome.notes}
        run.json("study", found)
    return Answer(to_jsonable(found))


def cell(value: Any) -> Any:
    """Intervals and other lists as text, for tables of one value per cell."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in value) + "]"
    return value
