"""isotrace trace: why did the subject say so?"""

import os
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
import typer

from isotrace.base.errors import InputError
from isotrace.base.progress import command_line, progress, slug

if TYPE_CHECKING:
    from isotrace.attribution.supernodes import Supernodes
    from isotrace.report.trace.trace import TraceResult
    from isotrace.verbs.tracing import Tracer


def command(
    subject: Annotated[str, typer.Argument(help="bundled:molm, hf:org/name or a folder; reads molecules.")],
    dictionary: Annotated[str, typer.Argument(help="bundled:molm-clt or a folder.")],
    input: Annotated[
        str, typer.Argument(help="A SMILES, a file of many (CSV, TSV, Parquet, .smi, SDF), or - for stdin.")
    ],
    target: Annotated[
        str, typer.Option(help="mask:POS[:TOKEN], diff:POS:A:B or probe:NAME; POS counts from 0, begin tokens too.")
    ],
    out: Annotated[Path | None, typer.Option(help="Run folder; without it and without --json: runs/…")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    domain: Annotated[str | None, typer.Option(help="What tokens stand for, where the subject does not say.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of the file that holds the SMILES.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace another command's run in --out.")] = False,
    max_features: Annotated[int, typer.Option(min=1, help="Most active features that become nodes.")] = 1_200,
    tolerance: Annotated[
        float,
        typer.Option(min=0, help="Distance to the model that is near enough, as a share of what all features do."),
    ] = 0.1,
    node_threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the support that the features listed as supporting it carry.")
    ] = 0.7,
    edge_threshold: Annotated[float, typer.Option(min=0, max=1, help="Share of influence the edges keep.")] = 0.98,
    ablation: Annotated[str, typer.Option(help="What ablation sets a feature to: mean or zero.")] = "mean",
    controls: Annotated[int, typer.Option(min=2, help="Matched random circuits.")] = 24,
    spellings: Annotated[int, typer.Option(min=0, help="Randomised spellings; 0 = none.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of controls, spellings and bootstraps.")] = 0,
    names: Annotated[
        Path | None, typer.Option(help="Run of annotate that names the features, instead of the dictionary's shelf.")
    ] = None,
    fidelity: Annotated[
        Path | None, typer.Option(help="Run of evaluate that measured the dictionary, instead of its shelf.")
    ] = None,
    supernodes: Annotated[
        Path | None, typer.Option(help="supernodes.json to take over; default: that of the same command's earlier run.")
    ] = None,
) -> None:
    """Trace one prediction to features and atoms, verify it by intervention, and write a report."""
    from isotrace.attribution.trace import TraceConfig
    from isotrace.base.identity import Source
    from isotrace.base.runs import dumps, open_run
    from isotrace.datasets.inputs import read_inputs, rejects_frame
    from isotrace.report.trace.index import entry, index_page, page_row
    from isotrace.verbs.tracing import Tracer

    if ablation not in ("mean", "zero"):
        raise InputError(f"--ablation {ablation!r}: use mean or zero.")
    config = TraceConfig(
        max_features=max_features,
        tolerance=tolerance,
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        ablation=ablation,  # pyright: ignore[reportArgumentType]
        n_controls=controls,
        n_spellings=spellings,
        seed=seed,
    )
    if not input.strip():
        raise InputError("the input is empty: give a SMILES or a file.")
    rows, rejects = read_inputs(input, column=column)
    from_file = os.path.isfile(input)  # not Path.is_file, which raises for a SMILES longer than a file name
    single = rows.height + rejects.height == 1 and not from_file
    tracer = Tracer(subject, dictionary, domain=domain, names=names, fidelity=fidelity)
    folder = out or (None if json else Path("runs") / slug(f"trace {input[:40]} {target}"))
    arguments = {
        "command": command_line(),
        "seed": seed,
        "inputs": {
            "input": Path(input) if from_file else input,
            "subject": Source.of(subject, tracer.subject),
            "dictionary": Source.of(dictionary, tracer.dictionary),
        },
        "overwrite": overwrite,
    }

    def traced(row: dict[str, Any], place: Path | None) -> "TraceResult":
        given = earlier_groups(tracer, supernodes, place, arguments["command"])
        settings = {"name": row["name"], "supernodes": given}
        if place is None:
            return tracer.trace(row["sequence"], target, config, **settings)
        with open_run(place, **arguments) as run:
            result = tracer.trace(row["sequence"], target, config, **settings)
            result.write(run)
        return result

    if single:
        summary = traced(rows.to_dicts()[0], folder).to_dict()
        typer.echo(dumps(summary) if json else "\n".join(describe(summary, folder)))
        return
    found, entries, refused = [], [], [(r["index"], r["input"], r["reason"]) for r in rejects.to_dicts()]
    with nullcontext() if folder is None else open_run(folder / "summary", **arguments) as summary_run:
        for row in progress(rows.to_dicts(), "tracing"):
            place = folder and folder / slug(f"{row['index']:05d} {row['name'] or ''}")
            try:
                result = traced(row, place)
            except InputError as error:
                refused.append((row["index"], row["sequence"], str(error)))
                continue
            found.append(result.to_dict() | {"index": row["index"]})
            if place is not None:
                entries.append(entry(row["name"] or row["sequence"], row["sequence"], result._repr_html_()))
                entries[-1]["pages"].append(page_row(found[-1], f"../{place.name}/report.html"))
        table = rejects_frame(refused)
        if summary_run is not None:
            summary_run.table("rejects", table)
            summary_run.table("traces", flat(found))
            title = f"{len(found)} molecules traced, {table.height} rejected"
            started = summary_run.manifest["started"]
            summary_run.text("index.html", index_page(title, tracer, entries, table.to_dicts(), started))
        if not found:
            raise InputError(f"no row of {input!r} could be traced; first reason: {refused[0][2]}")
    if json:
        typer.echo(dumps({"traces": found, "rejects": table.to_dicts()}))
    else:
        where = "" if folder is None else f"; see {folder / 'summary' / 'index.html'}"
        typer.echo(f"{len(found)} traced, {table.height} rejected{where}")
        for index, text, reason in refused:
            typer.echo(f"  rejected row {index}: {text!r}: {reason}")


def earlier_groups(tracer: "Tracer", given: Path | None, folder: Path | None, command: str) -> "Supernodes | None":
    """The groups of `given`, or of an earlier run of the same command in `folder`, read before that is emptied. Raises
    InputError for a file that cannot be used."""
    from isotrace.attribution.supernodes import read_supernodes
    from isotrace.base.runs import read_manifest

    before = folder and folder / "supernodes.json"
    if given is None and before and before.is_file() and read_manifest(before.parent)["command"] == command:
        given = before
    return None if given is None else read_supernodes(given, tracer.dictionary)


def flat(found: list[dict[str, Any]]) -> pl.DataFrame:
    """One row per trace with the numbers a table wants."""
    rows = [
        {
            "index": t["index"],
            "input": t["input"],
            "name": t["name"],
            "value": t["target"]["value"],
            "n_features": t["circuit"]["n_features"],
            **{name: t["circuit"][name] for name in ("full", "empty", "error", "removed", "reproduces", "reason")},
            "circuit_value": t["circuit"]["value"],
            "control_error": t["circuit"]["control"]["error_mean"],
            "neuron_error": t["circuit"]["neurons"]["error"],
            "replacement_score": t["graph"]["replacement_score"],
            "warnings": len(t["warnings"]),
        }
        for t in found
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def describe(summary: dict[str, Any], folder: Path | None) -> Iterable[str]:
    """A trace in a few lines of plain text."""
    target, circuit, checks = summary["target"], summary["circuit"], summary["verification"]
    control = circuit["control"]
    yield f"{summary['input']}  {target['name']} = {target['value']:.3f} {target['unit']}"
    neurons = "" if circuit["neurons"]["error"] is None else f", as many neurons {circuit['neurons']['error']:.2f}"
    yield (
        f"circuit: {circuit['n_features']} features ({circuit['fraction_of_features']:.1%} of the active ones), alone "
        f"{circuit['value']:.2f}: {circuit['error']:.2f} from the model (all features ablated "
        f"{abs(circuit['empty'] - circuit['full']):.2f}, random circuits {control['error_mean']:.2f}{neurons})"
    )
    yield f"without it: {circuit['removed']:.2f} (without random circuits {control['removed_mean']:.2f})"
    yield (
        f"predicted against actual effects: r = {checks['pearson_free_running']:.2f} free-running, "
        f"{checks['pearson_frozen']:.2f} frozen; replacement score {summary['graph']['replacement_score']:.2f}"
    )
    best = sorted(summary["units"], key=lambda u: -u["score"])[:5]
    yield "atoms: " + ", ".join(f"{u['symbol']}{u['index']} {u['score']:.1%}" for u in best)
    for warning in summary["warnings"]:
        yield f"warning: {warning}"
    if folder is not None:
        yield f"report: {folder / 'report.html'}"
