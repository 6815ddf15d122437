"""`isotrace trace --quick`: a whole file at a glance."""

from collections.abc import Iterable
from typing import Any

import polars as pl

from isotrace.attribution.screen.screen import screen
from isotrace.base.errors import InputError
from isotrace.datasets.annotated import read
from isotrace.datasets.inputs import rejects_frame
from isotrace.report.trace.screen import ScreenResult, screen_result
from isotrace.subjects.targets import parse_target
from isotrace.verbs.loading import domain_of_subject, label
from isotrace.verbs.request import Progress
from isotrace.verbs.trace import TraceRequest
from isotrace.verbs.tracing import Tracer


def screened(
    request: TraceRequest, tracer: Tracer, rows: pl.DataFrame, refused: Iterable[Any], progress: Progress
) -> ScreenResult:
    """Raises InputError where no row can be used."""
    subject, dictionary = tracer.subject, tracer.dictionary
    domain, refused, found, target = domain_of_subject(subject), list(refused), [], None
    for row in progress(rows.to_dicts(), "screening"):
        try:
            reading = read(subject, domain, row["sequence"])[1]
            batch = subject.tokenize([reading.text])
            target = parse_target(request.target, subject, batch)
            given = {"ablation": request.ablation, "seed": request.seed}
            own = screen(subject, dictionary, domain, reading, target.prepare(subject, batch), target, **given)
            found.append((row["index"], reading, own))
        except InputError as error:
            refused.append((row["index"], row["sequence"], str(error)))
    if target is None or not found:
        raise InputError(f"no row of {label(request.data)!r} can be used; first reason: {refused[0][2]}")
    layers = dictionary.config.layers
    about = {name: tracer.about[name] for name in ("subject", "dictionary")}
    rejects = rejects_frame(refused)
    return screen_result(about, target, rows, domain, found, tracer.tables, layers, rejects, request.seed)
