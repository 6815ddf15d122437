"""Rows of many traced one by one, each into a folder of its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress, silent

if TYPE_CHECKING:
    import polars as pl

    from isotrace.attribution.supernodes import Supernodes
    from isotrace.base.runs import Run
    from isotrace.verbs.trace import TraceRequest
    from isotrace.verbs.tracing import Tracer


def home_of_rows() -> str:
    """From the page of a row to that of all."""
    from isotrace.base.runs import SUMMARY

    return f"../{SUMMARY}/report.html"


def rows_of(spec: "tuple[TraceRequest, bool]") -> Callable[[int], None]:
    """For a worker: what traces one row into its folder. `spec`: the request, and whether rows that stand there are
    the same command's."""
    from isotrace.datasets.inputs import read_inputs
    from isotrace.verbs.loading import subject_of
    from isotrace.verbs.tracing import Tracer

    request, go_on = spec
    rows, _ = read_inputs(request.data, column=request.column)
    tracer = Tracer(subject_of(request), request.dictionary, names=request.names, fidelity=request.fidelity)
    table, others, folders = rows.to_dicts(), seconds(request, rows), folders_of(rows)

    def one(i: int) -> None:
        assert request.out is not None  # `shared` has seen to it
        traced(request, tracer, table[i], request.out / folders[i], against=others[i], go_on=go_on, home=home_of_rows())

    return one


def folders_of(rows: "pl.DataFrame") -> list[str]:
    """Of every row, in the folder of all."""
    from isotrace.base.progress import slug

    return [slug(f"{row['index']:05d} {row['name'] or ''}") for row in rows.to_dicts()]


def traced(
    request: "TraceRequest",
    tracer: "Tracer",
    row: Mapping[str, Any],
    place: Path | None,
    *,
    against: Any = None,
    go_on: bool = False,
    home: str | None = None,
    progress: Progress = silent,
) -> Any:
    """One row, as `read_inputs` has it, traced, or compared with a second, and saved in `place`, if any. `go_on`: a
    complete run with the same inputs that is there already is read instead. `home`: see `open_run`."""
    from isotrace.attribution.pairs.pair import PairConfig
    from isotrace.attribution.trace import TraceConfig
    from isotrace.base.result import Result
    from isotrace.base.runs import is_done

    if go_on and place is not None and is_done(place, **run_of(request, tracer, row, against)):
        return Result.load(place)
    if request.against is not None:
        with opened(request, tracer, place, row, against, home) as run:
            kept = {"name": row["name"], "progress": progress}
            result = tracer.pair(row["sequence"], against, request.target, request.settings(PairConfig), **kept)
            if run is not None:
                result.write(run)
        return result
    config = request.settings(TraceConfig)
    groups = earlier_groups(tracer, request.supernodes, place, request.command)
    numbers = row.get("original")
    kept = {"name": row["name"], "supernodes": groups, "numbers": None if numbers is None else tuple(numbers)}
    kept |= {"structure": request.structure, "tracks": request.tracks, "with_map": request.map}
    with opened(request, tracer, place, row, home=home) as run:
        result = tracer.trace(row["sequence"], request.target, config, **kept, progress=progress)
        if run is not None:
            result.write(run)
    return result


def seconds(request: "TraceRequest", rows: "pl.DataFrame") -> list[str | None]:
    """What every row is compared with, None for a trace. Raises InputError where the data have no such column."""
    from isotrace.datasets.reading.cells import column_of, is_missing

    if request.against is None:
        return [None] * rows.height
    if not isinstance(request.against, str):
        raise InputError("many inputs are compared with a column of theirs: give its name as against.")
    found = rows[column_of(rows, request.against, "--against")].to_list()
    return ["" if text is None or is_missing(str(text)) else str(text) for text in found]


def run_of(
    request: "TraceRequest", tracer: "Tracer", row: Mapping[str, Any] | None = None, against: Any = None
) -> dict[str, Any]:
    """What the run of a row depends on, or that of all rows."""
    from isotrace.subjects.probe import probe_folder
    from isotrace.verbs.loading import named

    inputs = tracer.inputs | {"data": named(request.data, request.column)}
    for name in ("supernodes", "structure", "tracks"):
        inputs |= {} if getattr(request, name) is None else {name: getattr(request, name)}
    inputs |= {} if row is None else {"sequence": row["sequence"]}
    inputs |= {} if against is None else {"against": str(named(against, None))}
    if request.target.startswith("probe:"):
        inputs["probe"] = probe_folder(tracer.subject.files.folder, "", request.target.partition(":")[2])[0]
    return {"command": request.command, "seed": request.seed, "inputs": inputs}


def opened(
    request: "TraceRequest",
    tracer: "Tracer",
    place: Path | None,
    row: Mapping[str, Any] | None = None,
    against: Any = None,
    home: str | None = None,
) -> AbstractContextManager["Run | None"]:
    from isotrace.base.runs import open_run

    if place is None:
        return nullcontext()
    return open_run(place, **run_of(request, tracer, row, against), overwrite=request.overwrite, home=home)


@contextmanager
def many_in(request: "TraceRequest", folders: Sequence[str]) -> Iterator[bool]:
    """The folder of many runs, this process's alone meanwhile and rid of what another command, or rows that are gone,
    left there; whether the same command was stopped in it, so that its rows need not be traced again."""
    from isotrace.base.files import locked
    from isotrace.base.runs import MANIFEST, SUMMARY, read_manifest, remove_rows, remove_run, replaceable

    if request.out is None:
        yield False
        return
    if (request.out / MANIFEST).is_file():  # of one row
        replaceable(request.out, request.command, request.overwrite)
        remove_run(request.out)
    with locked(request.out):
        remove_rows(request.out, request.command, request.overwrite, folders)
        before = request.out / SUMMARY
        yield (before / MANIFEST).is_file() and read_manifest(before)["status"] != "complete"


def earlier_groups(tracer: "Tracer", given: Path | None, folder: Path | None, command: str) -> "Supernodes | None":
    """The groups of `given`, or of an earlier run of the same command in `folder`, read before that is emptied. Raises
    InputError for a file that cannot be used."""
    from isotrace.attribution.supernodes import read_supernodes
    from isotrace.base.runs import read_manifest

    before = folder and folder / "supernodes.json"
    if given is None and before and before.is_file() and read_manifest(before.parent)["command"] == command:
        given = before
    return None if given is None else read_supernodes(given, tracer.dictionary)
