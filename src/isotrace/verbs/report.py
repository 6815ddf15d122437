"""The page of a saved run, and its card, made again."""

from pathlib import Path
from typing import Annotated

from isotrace.verbs.request import PLACE, Answer, Progress, Request, verb

ALONE = {"files": {}, "home": None}
"""What stands beside a page that lies elsewhere."""


class ReportRequest(Request):
    run: Annotated[Path, PLACE]
    """Folder that a command wrote, with result.json."""
    out: Path | None = None
    """File to write; default: report.html in the run."""


@verb(ReportRequest)
def report(request: ReportRequest, progress: Progress) -> Answer:
    """Make the page and the card of a saved run again, as this version lays them out; nothing is computed."""
    from isotrace.base.errors import RunError
    from isotrace.base.files import write_whole
    from isotrace.base.result import Result
    from isotrace.base.runs import read_manifest, rewritten

    result, manifest = Result.load(request.run), read_manifest(request.run)
    try:
        result.page(manifest)
    except KeyError as error:
        raise RunError(
            f"{request.run} was written by another isotrace and lacks {error}: run {manifest['command']!r} again."
        ) from None
    if request.out is not None:  # of the page alone, wherever it goes
        return Answer({"report": str(write_whole(request.out, result.page(manifest | ALONE).encode()))})
    for name, picture in result.beside().items():
        rewritten(request.run, name, picture)
    manifest = read_manifest(request.run)  # which knows the pictures now
    if manifest.get("home") and not (request.run / manifest["home"]).is_file():
        manifest["home"] = None
    page = result.page(manifest).encode(errors="backslashreplace")
    return Answer({"report": str(rewritten(request.run, "report.html", page))})
