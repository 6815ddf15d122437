"""Which component carries an answer from its cause, at which positions and in which layers?"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from isotrace.base.errors import InputError
from isotrace.verbs.request import PLACE, Column, Data, InFolder, OnSubject, Progress, Seeded, look_at, verb

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from isotrace.attribution.maps.pair import MapSettings, Pair
    from isotrace.domains.domain import Domain, Reading
    from isotrace.report.maps import MapResult
    from isotrace.subjects.subject import Batch, Subject

Row = tuple[Mapping[str, Any], "Reading", "Batch", "Batch | None"]
"""A row of the data, how its sequence is read, its tokens and those of what it is compared with."""


class MapRequest(OnSubject, InFolder, Seeded):
    data: Annotated[Data, PLACE]
    column: Column = None
    target: str = "mask"
    """mask: an element of every sequence, drawn at random; or a target of trace (mask:POS, probe:NAME, …) for all."""
    against: str | None = None
    """Column with a second sequence of as many tokens: what differs is the cause; left out, a span is corrupted."""
    masks: int = Field(default=1, ge=1)
    """Elements drawn of every sequence, for the target mask."""
    within: str | None = None
    """Where they are drawn, for the target mask: a symbol, side or region (N, product, CDR3)."""
    corruption: Literal["mask", "exchange", "noise"] = "mask"
    """What corrupts the cause: mask tokens, other tokens of its kind, or noise on its embeddings (three sd)."""
    span: int = Field(default=3, ge=1)
    """Tokens of the cause: the run of as many that moves the answer most when it is corrupted."""
    least: float = Field(default=0.1, gt=0)
    """Pairs whose answer the corruption moves by less are dropped and counted."""
    nulls: int = Field(default=1, ge=1)
    """Random spans a pair, as long as the cause."""
    out: Path | None = None
    """Run folder; left out, the command takes one in runs/, and with --json or in Python nothing is saved."""
    bootstrap: int = Field(default=1_000, ge=20)
    """Draws of sequences for the intervals."""

    def look(self) -> None:
        super().look()
        if self.target != "mask" and (self.masks != 1 or self.within is not None):
            raise InputError("--masks and --within are about elements drawn for the target mask: leave them out.")
        if self.against is not None and self.corruption != "mask":
            raise InputError("with --against the second sequence is what corrupts: leave out --corruption.")
        if self.target != "mask" and isinstance(self.subject, str | Path):
            from isotrace.subjects.sources.source import look
            from isotrace.subjects.targets import look_at_target

            if (folder := look(str(self.subject))) is not None:
                look_at_target(self.target, folder, str(self.subject))
        look_at(self.data, self.column, against=self.against)


@verb(MapRequest)
def tracing_map(request: MapRequest, progress: Progress) -> "MapResult":
    """Map which component carries an answer from its cause, at which positions and in which layers.

    Every pair is a sequence and the same with the cause corrupted; activations of the first are put into the second.
    """
    from contextlib import nullcontext

    from isotrace.attribution.maps.injection import injection
    from isotrace.attribution.maps.many import Maps, one_map
    from isotrace.attribution.maps.pair import MapSettings
    from isotrace.base.identity import Source
    from isotrace.base.runs import open_run
    from isotrace.datasets.inputs import read_inputs, rejects_frame
    from isotrace.report.maps import map_result
    from isotrace.subjects.targets import check_target
    from isotrace.verbs.loading import domain_of_subject, label, named, subject_of

    settings = request.settings(MapSettings)
    rows, rejects = read_inputs(request.data, column=request.column)
    subject = subject_of(request)
    domain = domain_of_subject(subject)
    subject.require_float32("a map")
    if request.target == "mask":
        subject.reading_position(1)
    else:
        check_target(request.target, subject)
    inputs = {"subject": Source.of(subject.source, subject), "data": named(request.data, request.column)}
    where = {"command": request.command, "seed": request.seed, "inputs": inputs, "overwrite": request.overwrite}
    with nullcontext() if request.out is None else open_run(request.out, **where) as run:
        refused = rejects.rows()
        texts = readings(request, subject, domain, rows, refused)
        asked = pairs_of(request, subject, domain, texts, settings, refused, progress)
        if not asked:
            first = f"; first reason: {refused[0][2]}" if refused else ""
            raise InputError(f"no row of {label(request.data)!r} can be mapped{first}")
        kept = [i for i, (_, _, pair) in enumerate(asked) if abs(pair.moved) >= settings.least]
        if not kept:
            most = max(abs(pair.moved) for *_, pair in asked)
            raise InputError(
                f"corruption moves no answer of {len(asked)} by {settings.least:g} (at most {most:.2g}): give a longer "
                "--span or a smaller --least."
            )
        ones = [one_map(asked[i][2]) for i in progress(kept, "mapping")]
        maps = Maps(ones, [str(asked[i][0]["index"]) for i in kept], settings)
        held = held_out(domain, [asked[i][0]["sequence"] for i in kept], request.seed)
        table = pair_table(asked, kept, held)
        tables = {"pairs": table, "rejects": rejects_frame(refused)}
        about = {"subject": subject.source, "domain": domain.name, "n_layers": subject.n_layers}
        about |= {name: getattr(request, name) for name in ("target", "corruption", "span", "least")}
        about |= {"corruption": "another sequence", "span": None} if request.against is not None else {}
        result = map_result(maps, [pair for *_, pair in asked], tables, injection(maps, held, progress), about)
        if run is not None:
            result.write(run)
    return result


def readings(
    request: MapRequest, subject: "Subject", domain: "Domain", rows: "pl.DataFrame", refused: list[Any]
) -> list[Row]:
    """Of every row that can be read; the others join `refused`."""
    from isotrace.datasets.reading.cells import column_of

    other = None if request.against is None else column_of(rows, request.against, "--against")
    found = []
    for row in rows.rows(named=True):
        try:
            text = row["sequence"]
            batch = subject.tokenize([text])
            reading = domain.read(text, subject.tokens(batch.ids[0]), batch.offsets[0])
            against = None
            if other is not None:
                against = subject.tokenize([str(row[other] or "")])
            found.append((row, reading, batch, against))
        except InputError as error:
            refused.append((row["index"], row["sequence"], str(error)))
    return found


def pairs_of(
    request: MapRequest, subject: "Subject", domain: "Domain", texts: list[Row], settings: "MapSettings",
    refused: list[Any], progress: Progress,
) -> list[tuple[Mapping[str, Any], str, "Pair"]]:  # fmt: skip
    """(row, target, pair) of everything that is asked."""
    from isotrace.attribution.maps.pair import pair_of, pool_of
    from isotrace.subjects.targets import parse_target

    pool, found = pool_of((reading, batch) for _, reading, batch, _ in texts), []
    for row, reading, batch, against in progress(texts, "corrupting"):
        try:
            asked = targets(request, subject, domain, reading, row["index"])
        except InputError as error:
            refused.append((row["index"], row["sequence"], str(error)))
            continue
        for target in asked:
            try:
                goal = parse_target(target, subject, batch)
                clean = goal.prepare(subject, batch)
                other = None if against is None else goal.prepare(subject, against)
                given = {"pool": pool, "against": other, "draw": len(found)}
                found.append((row, target, pair_of(domain, subject, reading, clean, goal, settings, **given)))
            except InputError as error:
                refused.append((row["index"], row["sequence"], str(error)))
    return found


def targets(
    request: MapRequest, subject: "Subject", domain: "Domain", reading: "Reading", index: int
) -> list[str]:  # fmt: skip
    """Of one sequence: what was asked, or its masked elements. Raises InputError where it has none to draw from."""
    import numpy as np

    if request.target != "mask":
        return [request.target]
    first = request.span + 1 if subject.predicts_next else 0
    names = domain.names(reading)
    places = [
        p
        for p, written in enumerate(reading.elements)
        if len(written) == 1
        and p >= first
        and (request.within is None or request.within in map(names[written[0]].get, ("symbol", "side", "region")))
    ]
    if not places:
        there = "" if request.within is None else f" {request.within}"
        raise InputError(f"it has no{there} {domain.element} of one token to draw")
    drawn = np.random.default_rng((request.seed, 14, index)).permutation(len(places))[: request.masks]
    return [f"mask:{places[i]}" for i in sorted(drawn.tolist())]


def held_out(domain: "Domain", texts: list[str], seed: int) -> "np.ndarray | None":
    """bool of every pair: half of the sequences, by groups of relatives; None where they are all of one."""
    from isotrace.stats.splits import deal

    try:
        return deal(domain.groups(texts), (0.5, 0.5), seed) == 1
    except InputError:
        return None


def pair_table(
    asked: list[tuple[Mapping[str, Any], str, "Pair"]], kept: list[int], held: "np.ndarray | None"
) -> "pl.DataFrame":
    """`cause`: its tokens; `elsewhere`: see `Pair`; `part`: of what is kept, whether injection was chosen or told on
    it."""
    import polars as pl

    rows = []
    for i, (row, target, pair) in enumerate(asked):
        tokens = pair.subject.tokens(pair.clean.ids[0])
        part = None
        if i in kept and held is not None:
            part = "held out" if held[kept.index(i)] else "validation"
        rows.append(
            {"index": row["index"], "name": row["name"], "sequence": row["sequence"], "target": target,
             "positions": [*pair.cause], "cause": " ".join(tokens[p] for p in pair.cause),
             "clean": pair.values[0], "corrupt": pair.values[1], "moved": pair.moved, "elsewhere": pair.elsewhere,
             "kept": i in kept, "part": part}
        )  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"name": pl.String, "part": pl.String}, infer_schema_length=None)
