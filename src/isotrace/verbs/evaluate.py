"""How much of a subject is left when dictionaries stand in for it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from isotrace.base.errors import InputError
from isotrace.verbs.request import PLACE, Loaded, OnDictionary, Progress, Seeded, verb

if TYPE_CHECKING:
    from isotrace.report.evaluation import Evaluation


class EvaluateRequest(OnDictionary, Seeded):
    dictionary: Annotated[tuple[Loaded, ...], PLACE]
    """bundled:molm-clt or folders; the first is compared with."""
    out: Path | None = None
    """Run folder; without it only what is printed."""
    limit: int | None = Field(default=None, ge=1)
    """Take only the first usable rows."""
    mask_rate: float | None = Field(default=None, ge=0.01, le=0.99)
    """Share of tokens masked; usual: 0.15. A causal subject masks none and predicts every next token."""
    bootstrap: int = Field(default=500, ge=20)
    """Draws of sequences for the intervals."""
    controls: bool = True
    """Also controls, fitted on a quarter of the sequences."""
    attach: bool = False
    """Put the result on the dictionaries' shelves."""

    def look(self) -> None:
        super().look()
        if self.attach and self.out is None:
            raise InputError("--attach puts a run on the shelf: give its --out.")


@verb(EvaluateRequest)
def evaluate(request: EvaluateRequest, progress: Progress) -> "Evaluation":
    """Fidelity of dictionaries and of controls with as many active features, on held-out sequences."""
    from dataclasses import replace

    from isotrace.dictionaries.shelf import attach, shelf_folder
    from isotrace.evaluation.comparison import compare
    from isotrace.report.evaluation import Evaluation
    from isotrace.verbs.corpus import usable
    from isotrace.verbs.loading import dictionary_of, label, opened, subject_of, trained_on

    given = request.dictionary
    names = [label(one) for one in given]
    if repeated := [name for place, name in enumerate(names) if name in names[:place]]:
        raise InputError(f"{repeated[0]!r} is given twice: name each dictionary once.")
    shelves = [shelf_folder(one) for one in given] if request.attach else []
    subject = subject_of(request)
    dictionaries = {name: dictionary_of(one, subject) for name, one in zip(names, given, strict=True)}
    sequences, rejects = usable(subject, request.data, request.column, request.limit)
    if not sequences:
        first = f"; first reason: {rejects['reason'][0]}" if rejects.height else ""
        raise InputError(f"no row of {label(request.data)!r} can be evaluated{first}")

    with opened(request, request.out, subject, *dictionaries.values()) as run:
        comparison = compare(
            subject, dictionaries, sequences, mask_rate=request.mask_rate, seed=request.seed,
            n_bootstrap=request.bootstrap, controls=request.controls,
            progress=lambda batches: progress(batches, "evaluating"),
        )  # fmt: skip
        warnings = [*comparison.warnings, *trained_on(dictionaries, request.data, request.column)]
        found = Evaluation.of(replace(comparison, warnings=warnings), rejects)
        if run is not None:
            found.write(run)
    if request.attach and request.out is not None:
        for folder, dictionary in zip(shelves, dictionaries.values(), strict=True):
            attach("fidelity", folder, dictionary, request.out)
    return found
