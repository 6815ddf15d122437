"""A task circuit as people meet it: plain data, tables, pictures, and one page that opens offline."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import polars as pl

from isotrace.base.progress import Progress
from isotrace.base.result import Result
from isotrace.base.runs import Run, to_jsonable
from isotrace.datasets.tasks import PARTS
from isotrace.dictionaries.features import Features
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.discovery.tasks.examples import example_rows
from isotrace.discovery.tasks.readout import prediction_table
from isotrace.discovery.tasks.task_circuit import TaskCircuit
from isotrace.domains.domain import Domain
from isotrace.report.circuit.figures import curve_svg, layers_svg
from isotrace.report.circuit.payload import render_circuit, sentences
from isotrace.subjects.subject import Subject


class CircuitResult(Result):
    """The circuit of a task: docs/circuit.md lists what `summary` and the tables `sweep`, `parts`, `predictions` and
    `rejects` hold.

    `view`: `subject`, `dictionary`, `domain`, `element`, `config`; per part the number of `groups`, per class how many
    `classes` rows; `examples`, see `example_rows`.
    """

    kind = "circuit"

    def to_frame(self) -> pl.DataFrame:
        """One row per size."""
        return self.tables["sweep"]

    def to_dict(self) -> dict[str, Any]:
        return self.summary | {"rejects": self.tables["rejects"].to_dicts()}

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        """Raises InputError for a domain that is no longer installed."""
        return render_circuit(self.summary, self.view, self.tables["parts"], manifest or {})

    def write(self, run: Run) -> None:
        super().write(run)
        run.text("curve.svg", curve_svg(self.summary))
        run.text("layers.svg", layers_svg(self.summary["layers"]))

    def told(self) -> Iterable[str]:
        return sentences(self.summary)

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(self.summary))
        return said + curve_svg(self.summary)


def circuit_result(
    found: TaskCircuit,
    subject: Subject,
    domain: Domain,
    dictionary: str,
    names: FeatureTables,
    *,
    n_drawn: int,
    overlap: Sequence[Mapping[str, Any]] = (),
    rows: pl.DataFrame | None = None,
    progress: Progress = lambda items, _: items,
) -> CircuitResult:
    """What was found, without subject and dictionary. dictionary: its source. names: of its features. n_drawn: report
    sequences to show, see `example_rows`. overlap: rows of `discovery.overlap`, where circuits were compared. rows: the
    input, as `read_inputs` has it; its columns travel into `predictions`, and its names to the sequences shown."""
    data, n = found.data, found.summary["necessity"]["n"]
    view = {
        "subject": subject.source,
        "dictionary": dictionary,
        "domain": domain.name,
        "element": domain.element,
        "config": asdict(found.config),
        "groups": {part: len({e.group for e in data.parts[part]}) for part in PARTS},
        "classes": [
            {"name": name} | {part: sum(int(e.y) == i for e in data.parts[part]) for part in PARTS}
            for i, name in enumerate(data.classes)
        ],
        "examples": example_rows(found, domain, n_drawn, progress),
    }
    said = prediction_table(found.readout, data)
    if rows is not None:
        said = beside(rows, said)
        names_of = dict(rows["index", "name"].rows())
        view["examples"] = [row | {"name": names_of[row["index"]]} for row in view["examples"]]  # fmt: skip
    summary = to_jsonable(found.summary | ({"overlap": [*overlap]} if overlap else {}))
    parts = named_parts(found, n, names)
    tables = {"sweep": sweep_frame(found.summary["sweep"]), "parts": parts, "predictions": said}
    tables["rejects"] = data.rejects
    return CircuitResult(summary, to_jsonable(view), tables)


def beside(rows: pl.DataFrame, said: pl.DataFrame) -> pl.DataFrame:
    """`said` behind the user's own columns; one that is called as one of ours gets `input_` before its name."""
    rows = rows.drop("original", strict=False)  # the atom map of molecules, which no table shows
    taken = {name: f"input_{name}" for name in rows.columns if name in said.columns and name != "index"}
    return rows.rename(taken).join(said, on="index", how="inner", maintain_order="left")


def sweep_frame(sweep: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """One row per size: nested keys joined by `_`, an interval as two columns that end in `_low` and `_high`."""
    return pl.DataFrame([_flat(entry) for entry in sweep], infer_schema_length=None)


def _flat(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in entry.items():
        if isinstance(value, Mapping):
            row |= _flat(value, f"{prefix}{key}_")
        elif isinstance(value, (list, tuple)):
            row |= {f"{prefix}{key}_{end}": v for end, v in zip(("low", "high"), value, strict=True)}
        else:
            row[prefix + key] = value
    return row


def named_parts(found: TaskCircuit, n: int, names: FeatureTables) -> pl.DataFrame:
    """The circuit of `n` parts, best first, as `TaskCircuit.parts` has it, with the subject's numbers of the layers; of
    features with their `label` ("not annotated" where nobody did) and its held-out `f1`."""
    table = found.parts(n).with_columns(layer=pl.col("layer").replace_strict(dict(enumerate(found.layer_numbers()))))
    if not isinstance(found.features.basis.components, Features):
        return table
    keys = list(table.select("layer", "feature").iter_rows())
    rows = names.of(keys)
    labels = [names.label(rows.get(key, {})) for key in keys]
    f1 = [rows.get(key, {}).get("f1") for key in keys]
    return table.with_columns(label=pl.Series(labels, dtype=pl.String), f1=pl.Series(f1, dtype=pl.Float64))
