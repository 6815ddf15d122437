"""A published table, computed again."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from isotrace.base.errors import InputError
from isotrace.verbs.request import PLACE, REPEATED, Answer, InFolder, Progress, Seeded, verb

if TYPE_CHECKING:
    from isotrace.report.study import StudyResult

OWN = ".isotrace-study"  # in a folder of work that was made here


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
def reproduce(request: ReproduceRequest, progress: Progress) -> "StudyResult | Answer":
    """Compute one of the tables of the documentation again; quick settings take minutes on two cores."""
    from isotrace.base.files import write_whole
    from isotrace.base.runs import open_run
    from isotrace.report.study import StudyResult
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
        place = folder.resolve()  # "." has no name
        work = place.with_name(f"{place.name}.work")
        if not work.exists():
            write_whole(work / OWN, b"removed when the study is done\n")
        dictionaries = {source: where for source, _, where in given}
        outcome = chosen.run(Setting(not request.full, work, request.seed, progress, dictionaries))
        result = StudyResult.of(chosen, not request.full, outcome)
        result.write(run)
    if (work / OWN).is_file():
        shutil.rmtree(work, ignore_errors=True)
    return result
