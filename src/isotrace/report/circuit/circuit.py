"""A task circuit as people meet it: the summary, tables, pictures, and one page that opens offline."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import scipy.stats

from isotrace.base.runs import Run
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.discovery.tasks.basis import FeatureBasis, Writers
from isotrace.discovery.tasks.task_circuit import Progress, TaskCircuit
from isotrace.domains.domain import Domain
from isotrace.report.circuit.circuit_examples import draw_examples
from isotrace.report.circuit.circuit_figures import curve_svg, layers_svg
from isotrace.report.circuit.circuit_payload import render_circuit
from isotrace.subjects.subject import Subject


def save_circuit(
    run: Run,
    found: TaskCircuit,
    subject: Subject,
    domain: Domain,
    dictionary_name: str,
    names: FeatureTables,
    *,
    n_drawn: int,
    progress: Progress = lambda items, _: items,
) -> None:
    """Write `circuit.json`, `sweep.parquet`, `parts.parquet`, `rejects.parquet`, `curve.svg`, `layers.svg` and
    `report.html` into the open run; docs/circuit.md lists their contents.

    dictionary_name: its source. names: of its features. n_drawn: report sequences to draw, of circuits made of
    features only.
    """
    n = found.summary["necessity"]["n"]
    parts = named_parts(found, n, names)
    layers = layer_rows(found)
    run.json("circuit", found.summary)
    run.table("sweep", sweep_frame(found.summary["sweep"]))
    run.table("parts", parts)
    run.table("rejects", found.data.rejects)
    run.text("curve.svg", curve_svg(found.summary))
    run.text("layers.svg", layers_svg(layers))
    # what a head or an MLP contributes at a token has no direction of its own to multiply a slope with
    n_drawn = n_drawn if isinstance(found.features.basis, Writers) else 0
    drawings = draw_examples(found, subject, domain, n, n_drawn, progress)
    about = {"subject": subject.source, "dictionary": str(dictionary_name), "element": domain.element}
    run.text("report.html", render_circuit(found, about, parts, layers, drawings, run.manifest))


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


def named_parts(found: TaskCircuit, n: int, tables: FeatureTables) -> pl.DataFrame:
    """The circuit of `n` parts, best first, as `TaskCircuit.parts` has it, with the subject's numbers of the layers; of
    features with their `label` ("not annotated" where nobody did) and its held-out `f1`."""
    table = found.parts(n).with_columns(layer=pl.col("layer").replace_strict(dict(enumerate(found.layer_numbers()))))
    if not isinstance(found.features.basis, FeatureBasis):
        return table
    keys = list(table.select("layer", "feature").iter_rows())
    rows = tables.of(keys)
    labels = [tables.label(rows.get(key, {})) for key in keys]
    f1 = [rows.get(key, {}).get("f1") for key in keys]
    return table.with_columns(label=pl.Series(labels, dtype=pl.String), f1=pl.Series(f1, dtype=pl.Float64))


def layer_rows(found: TaskCircuit) -> list[dict[str, Any]]:
    """`layers` of the summary with the subject's layer numbers, and the central 95 % `interval` of the number that a
    random choice puts into each (hypergeometric)."""
    basis, rows = found.features.basis, found.summary["layers"]
    n = sum(row["n"] for row in rows)
    made = []
    for row, size, layer in zip(rows, basis.sizes, found.layer_numbers(), strict=True):
        low, high = scipy.stats.hypergeom(basis.n, size, n).interval(0.95)
        made.append(row | {"layer": layer, "interval": [float(low), float(high)]})
    return made
