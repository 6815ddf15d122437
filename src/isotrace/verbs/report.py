"""The page of a saved run, made again."""

from pathlib import Path
from typing import Annotated

from isotrace.verbs.request import PLACE, Answer, Progress, Request, verb


class ReportRequest(Request):
    run: Annotated[Path, PLACE]
    """Folder that a command wrote, with result.json."""
    out: Path | None = None
    """File to write; default: report.html in the run."""


@verb(ReportRequest)
def report(request: ReportRequest, progress: Progress) -> Answer:
    """Make the page of a saved run again, as this version of isotrace lays it out; nothing is computed."""
    from isotrace.base.files import write_whole
    from isotrace.base.result import Result
    from isotrace.base.runs import read_manifest, rewritten

    html = Result.load(request.run).page(read_manifest(request.run))
    if request.out is None:
        return Answer({"report": str(rewritten(request.run, "report.html", html))})
    return Answer({"report": str(write_whole(request.out, html.encode()))})
