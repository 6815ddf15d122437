"""How well does a subject rank the mutations of one sequence, as a deep mutational scan measured them?"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from isotrace.base.errors import InputError, SubjectError
from isotrace.verbs.request import COMMAS, InFolder, Loaded, OnSubject, Progress, Seeded, look_at, verb

if TYPE_CHECKING:
    from isotrace.report.scan.scan import ScanResult
    from isotrace.subjects.subject import Subject


class ScanRequest(OnSubject, InFolder, Seeded):
    wild_type: Loaded
    """The sequence that was mutated, or a FASTA file of it alone."""
    data: Loaded
    """Mutations and what was measured: a table (CSV, TSV, Parquet, …); in Python also a DataFrame."""
    mutations: str
    """Column of mutations, A24G, several as A24G:K31R; with --sites of letters, VDGV."""
    label: str
    """Column of the measured effects, numbers."""
    sites: Annotated[tuple[int, ...] | None, COMMAS] = None
    """Positions whose letters the column of mutations holds, as 39,40,41,54."""
    designs: Loaded = None
    """Sequences of your own to place among the measured ones: a file as any input, or one sequence."""
    dictionary: Loaded = None
    """Dictionary of the subject: which of its features change, and whether that goes with what was measured."""
    names: Path | None = None
    """Run of annotate that names the features, instead of the dictionary's shelf."""
    offset: int = 0
    """Added to the positions of the table to count from 1 in the sequence."""
    worse: Literal["low", "high"] = "low"
    """Which measured values are those of a worse variant."""
    out: Path | None = None
    """Run folder; left out, the command takes one in runs/, and with --json or in Python nothing is saved."""
    bootstrap: int = Field(default=1_000, ge=20)
    """Draws of sites for the intervals."""

    def look(self) -> None:
        super().look()
        if self.names is not None and self.dictionary is None:
            raise InputError("--names names features: give the --dictionary that has them.")
        with named_as_asked():
            look_at(self.data, self.mutations, label=self.label)

    @property
    def column(self) -> str:
        """What stands where other verbs have the sequences."""
        return self.mutations


@contextmanager
def named_as_asked() -> Iterator[None]:
    """A missing column is told by the option that names it here."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("--column", "--mutations")) from None


@verb(ScanRequest)
def scan(request: ScanRequest, progress: Progress) -> "ScanResult":
    """Rank the measured mutations of one sequence by what a subject says of them, beside simple baselines."""
    from contextlib import nullcontext

    from isotrace.base.runs import open_run
    from isotrace.datasets.inputs import read_inputs
    from isotrace.datasets.mutations import read_designs, read_scan
    from isotrace.dictionaries.shelf import FeatureTables, shelf_of
    from isotrace.probing.changes import feature_changes
    from isotrace.probing.scan import ScanSettings, scan_variants
    from isotrace.report.scan.changes import changes_frame, changes_summary
    from isotrace.report.scan.scan import scan_result
    from isotrace.verbs.loading import dictionary_of, domain_of_subject, label, subject_of

    settings = request.settings(ScanSettings)
    name, sequence = wild_type_of(request.wild_type)
    subject = subject_of(request)
    domain = domain_of_subject(subject)
    dictionary = None if request.dictionary is None else dictionary_of(request.dictionary, subject)
    names = FeatureTables() if dictionary is None else shelf_of(dictionary, names=request.names).tables
    with named_as_asked():
        rows, rejects = read_inputs(request.data, column=request.mutations)
    where = {**run_of(request, subject, sequence), "overwrite": request.overwrite}
    with nullcontext() if request.out is None else open_run(request.out, **where) as run:
        if domain.element != "residue":
            raise SubjectError(f"a scan is of residues, and {subject.source} is of the domain {domain.name}.")
        domain.check(sequence)
        wild_type, refused = domain.same(sequence), None
        read = read_scan(rows, rejects, wild_type, request.label, request.offset, request.sites or ())
        designs = ()
        if request.designs is not None:
            own = read_inputs(request.designs)
            designs, refused = read_designs(*own, domain, wild_type, request.offset)
        found = scan_variants(subject, domain, read, settings, progress, designs)
        changed = None
        if dictionary is not None:
            changes = feature_changes(subject, dictionary, domain, read, settings, progress)
            changed = changes_summary(changes, names, label(request.dictionary)), changes_frame(changes, names)
        result = scan_result(found, subject, name, refused, changed)
        if run is not None:
            result.write(run)
    return result


def wild_type_of(given: Any) -> tuple[str | None, str]:
    """(name, sequence). Raises InputError where it is not one."""
    from isotrace.datasets.inputs import read_inputs

    rows, rejects = read_inputs(given)
    if rows.height != 1 or rejects.height:
        reason = f" ({rejects['reason'][0]})" if rejects.height else ""
        raise InputError(
            f"--wild-type holds {rows.height + rejects.height} sequences, of which {rows.height} can be used{reason}: "
            "give one sequence, or a file with one."
        )
    return rows["name"][0], rows["sequence"][0]


def run_of(request: ScanRequest, subject: "Subject", sequence: str) -> dict[str, Any]:
    """What the run depends on."""
    from isotrace.base.identity import Source
    from isotrace.verbs.loading import named

    data = named(request.data, request.mutations)
    inputs = {"subject": Source.of(subject.source, subject), "data": data, "wild type": sequence}
    inputs |= {} if request.designs is None else {"designs": named(request.designs)}
    inputs |= {} if request.dictionary is None else {"dictionary": named(request.dictionary)}
    inputs |= {} if request.names is None else {"names": request.names}
    return {"command": request.command, "seed": request.seed, "inputs": inputs}
