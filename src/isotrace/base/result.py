"""Results are data: what a verb found, with no model inside, so that it pickles, hashes, is saved and read again.

A kind of result is a subclass in the room `report`, which knows how to show it; `RESULTS` says where it stands, so that
a saved run finds its class by the kind that is written in it.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import polars as pl

from isotrace.base.errors import RunError
from isotrace.base.progress import shortened
from isotrace.base.registry import Registry
from isotrace.base.runs import Run, dumps, open_run, read_manifest

if TYPE_CHECKING:
    from torch import Tensor

FORMAT, FORMAT_VERSION = "isotrace-result", 2
_SHIPPED = {
    "adapt": "isotrace.report.transfer.adapting:AdaptResult",
    "annotation": "isotrace.report.atlas.annotation:AnnotationResult",
    "balance": "isotrace.report.features:BalanceTable",
    "circuit": "isotrace.report.circuit.result:CircuitResult",
    "connections": "isotrace.report.connections:ConnectionsResult",
    "evaluation": "isotrace.report.evaluation:Evaluation",
    "features": "isotrace.report.features:FeatureTable",
    "intervention": "isotrace.report.features:InterventionTable",
    "map": "isotrace.report.maps:MapResult",
    "pair": "isotrace.report.pair.pair:PairResult",
    "pairs": "isotrace.report.pair.index:Pairs",
    "probing": "isotrace.report.probe:ProbeResult",
    "recommendation": "isotrace.report.transfer.recommending:RecommendResult",
    "scan": "isotrace.report.scan.scan:ScanResult",
    "screen": "isotrace.report.trace.screen:ScreenResult",
    "steer": "isotrace.report.steer.steer:SteerResult",
    "study": "isotrace.report.study:StudyResult",
    "trace": "isotrace.report.trace.trace:TraceResult",
    "transfer": "isotrace.report.transfer.matrix:TransferResult",
    "traces": "isotrace.report.trace.index:Traces",
}
RESULTS: "Registry[type[Result]]" = Registry("kind of result", "isotrace.results", _SHIPPED, RunError)


@dataclass(frozen=True, eq=False, repr=False)
class Result(ABC):
    """`summary`: what `--json` prints. `view`: what the page shows beside it. `tables`, `tensors`: by name.

    All of it is plain data; NaN is null once it was saved. Equal and hashed by content.
    """

    kind: ClassVar[str]
    tensor_file: ClassVar[str] = "tensors"
    summary: dict[str, Any]
    view: dict[str, Any] = field(default_factory=dict)
    tables: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    tensors: "Mapping[str, Tensor]" = field(default_factory=dict)

    @abstractmethod
    def to_frame(self) -> pl.DataFrame:
        """The table that a reader asks for first."""

    @abstractmethod
    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        """HTML that opens offline; `manifest` is that of the run it stands in."""

    def beside(self) -> Mapping[str, bytes]:
        """Pictures that go with the page, by the name of their file; they are made again with it."""
        return {}

    @abstractmethod
    def _repr_html_(self) -> str:
        """What a notebook shows, and keeps in its file: some kilobytes."""

    def told(self) -> Iterable[str]:
        """What `print` says, a line each: the numbers that a reader asks for first."""
        plain = {name: value for name, value in self.summary.items() if isinstance(value, str | int | float)}
        yield ", ".join(f"{name} {value}" for name, value in plain.items())

    def __repr__(self) -> str:
        """At most 1,000 characters, whatever was found."""
        tables = ", ".join(f"{name} {table.height} × {table.width}" for name, table in self.tables.items())
        return shortened(f"{type(self).__name__} ({self.kind})", *self.told(), f"tables: {tables or 'none'}")

    def to_dict(self) -> dict[str, Any]:
        return dict(self.summary)

    @property
    def header(self) -> dict[str, str]:
        """What stands in the header of the file of tensors."""
        return {}

    @property
    def id(self) -> str:
        """sha256 of summary and view."""
        return hashlib.sha256(dumps([self.kind, self.summary, self.view]).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Result) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def write(self, run: Run) -> None:
        """All that is needed to read it again, and its page."""
        record = {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": self.kind, "view": self.view}
        run.json(self.kind, self.summary)
        run.json("result", record | {"tables": list(self.tables), "tensors": bool(self.tensors)}, indent=None)
        for name, table in self.tables.items():
            run.table(name, table)
        if self.tensors:
            run.tensors(self.tensor_file, self.tensors, self.header)
        for name, picture in self.beside().items():
            run.bytes(name, picture)
        run.text("report.html", self.page(run.manifest))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a run folder. Raises RunError where `open_run` does, which takes another result for another run."""
        command = f"{type(self).__name__}.save {self.id[:12]}"
        with open_run(path, command=command, seed=0, inputs={}, overwrite=overwrite) as run:
            self.write(run)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises RunError for a folder that holds no result, or one of another kind or format."""
        read_manifest(path)
        from safetensors.torch import load_file  # which takes torch

        folder = Path(path)
        try:
            record = json.loads((folder / "result.json").read_bytes())
            kind = record["kind"]
            if (record["format"], record["format_version"]) != (FORMAT, FORMAT_VERSION):
                raise RunError(f"{path} has result format {record['format_version']}, not {FORMAT_VERSION}: run again.")
            found = RESULTS[kind]
            summary = json.loads((folder / f"{kind}.json").read_bytes())
            tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in record["tables"]}
            tensors = load_file(folder / f"{found.tensor_file}.safetensors") if record["tensors"] else {}
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
            raise RunError(f"{path} holds no result that can be read ({error}): run the command again.") from None
        if not issubclass(found, cls):
            raise RunError(f"{path} holds a result of the kind {kind}, not {cls.__name__}.")
        return found(summary, record["view"], tables, tensors)  # pyright: ignore[reportReturnType]


def load(path: str | Path) -> Result:
    """What a command found, read from the run folder it wrote; of many traces, from the folder that holds them.

    Raises RunError for a folder that holds no result.
    """
    folder = Path(path)
    places = [place for place in (folder, folder / "summary") if (place / "result.json").is_file()]
    if not places and (folder / "dictionary.json").is_file():
        raise RunError(f"{path} is a dictionary: isotrace.load_dictionary(folder, subject) reads it.")
    return Result.load((*places, folder)[0])
