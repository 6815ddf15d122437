"""Why did the subject say so?"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from isotrace.base.errors import InputError
from isotrace.verbs.request import PLACE, Loaded, OnDictionary, Progress, Seeded, look_at, option, verb
from isotrace.verbs.spreading import OnWorkers, shared
from isotrace.verbs.trace_rows import folders_of, home_of_rows, many_in, opened, rows_of, seconds, traced

if TYPE_CHECKING:
    from isotrace.report.pair.index import Pairs
    from isotrace.report.pair.pair import PairResult
    from isotrace.report.trace.index import Traces
    from isotrace.report.trace.screen import ScreenResult
    from isotrace.report.trace.trace import TraceResult

GRAPH = ("max_features", "circuit", "node_threshold", "edge_threshold", "supernodes", "structure", "tracks", "map")
CIRCUIT = ("tolerance", "nodes", "controls", "spellings")
"""Options that not every way to trace reads."""


class TraceRequest(OnDictionary, Seeded, OnWorkers):
    way_on = "the same command goes on from there"
    data: Annotated[Loaded, PLACE]
    """A SMILES, a file of many (CSV, .smi, SDF, …), or - for stdin; in Python also molecules, a list, a table."""
    target: str
    """mask:POS[:TOKEN], diff:POS:A:B, mutation:A24G, probe:NAME, class:LABEL[-OTHER], output:NAME, label:POS:NAME."""
    against: Loaded | None = None
    """A second SMILES or sequence to explain the difference to; with a file, the column that holds one in every row."""
    out: Path | None = None
    """Run folder; left out, the command takes one in runs/, and with --json or in Python nothing is saved."""
    quick: bool = False
    """Neither graph nor circuit: what hiding atoms and substructures does, over a whole file in minutes."""
    max_features: int = Field(default=1_200, ge=1)
    """Most active features that become nodes."""
    tolerance: float = Field(default=0.1, ge=0)
    """Distance to the model that is near enough, as a share of what all features do."""
    circuit: Literal["effects", "learned"] = "learned"
    """How the circuit is chosen: by effects, or by a mask learned on changed inputs too."""
    node_threshold: float = Field(default=0.7, ge=0, le=1)
    """Share of the support that the features listed as supporting it carry."""
    edge_threshold: float = Field(default=0.98, ge=0, le=1)
    """Share of influence the edges keep."""
    ablation: Literal["mean", "zero"] = "mean"
    """What ablation sets a feature to."""
    nodes: int = Field(default=96, ge=2)
    """Single features whose ablation is measured."""
    controls: int = Field(default=24, ge=2)
    """Matched random circuits."""
    spellings: int = Field(default=5, ge=0)
    """Randomised spellings; 0 = none."""
    names: Path | None = None
    """Run of annotate that names the features, instead of the dictionary's shelf."""
    fidelity: Path | None = None
    """Run of evaluate that measured the dictionary, instead of its shelf."""
    supernodes: Path | None = None
    """supernodes.json to take over; default: that of the same command's earlier run."""
    map: bool = False
    """Also a tracing map: what carries the answer from its cause, at which tokens and in which layers."""
    structure: Path | None = None
    """PDB or mmCIF file of the protein, to be coloured by what the trace finds."""
    tracks: Path | None = None
    """Label file (docs/annotation-files.md) of atoms or residues, set beside what the trace finds."""

    def _without(self, *names: str, why: str) -> None:
        """Raises InputError for options that would be ignored."""
        fields = type(self).model_fields
        if given := [name for name in names if getattr(self, name) != fields[name].default]:
            raise InputError(f"{why}: leave out {', '.join(option(name, fields[name]) for name in given)}.")

    def look(self) -> None:
        super().look()
        if self.quick and self.against is not None:
            raise InputError("a pair is compared by its circuit: leave out --quick.")
        if self.quick:
            self._without("workers", why="--quick takes minutes, and one process")
            self._without(*GRAPH, *CIRCUIT, why="--quick makes neither graph nor circuit")
        if self.against is not None:
            self._without(*GRAPH, why="a pair is compared without a graph")
        if isinstance(self.against, str) and os.path.isfile(str(self.data)):  # the name of a column
            look_at(self.data, self.column, against=self.against)
        if not isinstance(self.subject, str | Path):
            return
        from isotrace.subjects.sources.source import look
        from isotrace.subjects.targets import look_at_target

        source = str(self.subject)
        if (folder := look(source)) is None:
            return
        look_at_target(self.target, folder, source)
        alone = isinstance(self.data, str) and self.data != "-" and not os.path.isfile(self.data)
        if alone and source.startswith("bundled:"):
            from isotrace.domains.domain import domain_of

            domain_of("molecule").begun(self.data.strip(), source)


@verb(TraceRequest)
def trace(request: TraceRequest, progress: Progress) -> "TraceResult | Traces | PairResult | Pairs | ScreenResult":
    """Trace one prediction to features and atoms, verify it by intervention, and write a report.

    One text or molecule gives a TraceResult, anything else Traces: one for every row that can be traced. With `against`
    it is the difference of two that is explained, and the result a PairResult, or Pairs. With `quick` it is a
    ScreenResult: substructures, atoms and features over all of the data.
    """
    from rdkit import Chem

    from isotrace.base.runs import MANIFEST, SUMMARY, remove_run
    from isotrace.datasets.inputs import read_inputs, rejects_frame
    from isotrace.report.page import plural
    from isotrace.report.pair.index import Pairs
    from isotrace.report.trace.index import Traces
    from isotrace.subjects.targets import check_target
    from isotrace.verbs.loading import label, subject_of
    from isotrace.verbs.tracing import Tracer

    rows, rejects = read_inputs(request.data, column=request.column)
    refused = rejects.rows()
    given = request.data
    text = isinstance(given, str | Chem.Mol) and not (isinstance(given, str) and os.path.isfile(given))
    single = text and rows.height + rejects.height == 1
    if single and refused:
        raise InputError(f"{refused[0][2]}: give a SMILES or a file.")
    subject = subject_of(request)
    check_target(request.target, subject)
    if single and request.workers is not None:
        raise InputError("one input is traced by one process: leave out --workers.")
    tracer = Tracer(subject, request.dictionary, names=request.names, fidelity=request.fidelity)
    if request.quick:
        from isotrace.verbs.screening import screened

        with opened(request, tracer, request.out) as run:
            result = screened(request, tracer, rows, refused, progress)
            if run is not None:
                result.write(run)
        return result
    if single:
        row = rows.row(0, named=True)
        return traced(request, tracer, row, request.out, against=request.against, progress=progress)
    table = rows.to_dicts()
    others = seconds(request, rows)
    own = [name for name in rows.columns if name not in ("index", "name", "sequence", "original", request.against)]
    folders = folders_of(rows)
    summary = request.out and request.out / SUMMARY
    with many_in(request, folders) as go_on, opened(request, tracer, summary) as run:
        go_on |= shared(request, rows_of, (request, go_on), range(len(table)), progress, "tracing")
        found, kept = [], []
        for row, other, folder in zip(progress(table, "tracing"), others, folders, strict=True):
            place = request.out and request.out / folder
            try:
                one = traced(request, tracer, row, place, against=other, go_on=go_on, home=home_of_rows())
                found.append((row["index"], one, {name: row[name] for name in own}))
                kept.append(request.out and folder)
            except InputError as error:
                refused.append((row["index"], row["sequence"], str(error)))
                if place and (place / MANIFEST).is_file():
                    remove_run(place)
        if not found:
            raise InputError(f"no row of {label(given)!r} could be traced; first reason: {refused[0][2]}")
        said = "pairs compared" if request.against is not None else f"{plural(found[0][1].summary['domain'])} traced"
        parts = f"{len(found)} {said}, {len(refused)} rejected", tracer.about
        if request.against is not None:
            result = Pairs.of(*parts, found, kept, rejects_frame(refused))
        else:
            result = Traces.of(*parts, [(index, one) for index, one, _ in found], kept, rejects_frame(refused))
        if run is not None:
            result.write(run)
    return result
