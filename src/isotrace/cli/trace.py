"""isotrace trace: why did the subject say so?"""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
import typer

from isotrace.base.errors import InputError
from isotrace.base.progress import command_line, progress, slug

if TYPE_CHECKING:
    from isotrace.report.trace.trace import Trace


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
    node_threshold: Annotated[float, typer.Option(min=0, max=1, help="Share of support the circuit keeps.")] = 0.7,
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
    from isotrace.base.runs import dumps, open_run
    from isotrace.datasets.inputs import read_inputs, rejects_frame
    from isotrace.report.trace.index import entry, index_page, page_row
    from isotrace.verbs.tracing import Tracer

    if ablation not in ("mean", "zero"):
        raise InputError(f"--ablation {ablation!r}: use mean or zero.")
    config = TraceConfig(
        max_features=max_features,
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
    inputs: dict[str, Path | str] = {"input": Path(input) if from_file else input}
    arguments = {"command": command_line(), "seed": seed, "inputs": inputs, "overwrite": overwrite}
    if single:
        result = tracer.trace(rows["sequence"][0], target, config)
        if folder is not None:
            result = with_supernodes(result, supernodes, folder, arguments["command"])
            with open_run(folder, **arguments) as run:
                result.save(run)
        summary = result.to_dict()
        typer.echo(dumps(summary) if json else "\n".join(describe(summary, folder)))
        return
    found, entries, refused = [], [], [(r["index"], r["input"], r["reason"]) for r in rejects.to_dicts()]
    for row in progress(rows.to_dicts(), "tracing"):
        try:
            result = tracer.trace(row["sequence"], target, config, name=row["name"])
        except InputError as error:
            refused.append((row["index"], row["sequence"], str(error)))
            continue
        found.append(result.to_dict() | {"index": row["index"]})
        if folder is not None:
            place = slug(f"{row['index']:05d} {row['name'] or ''}")
            result = with_supernodes(result, supernodes, folder / place, arguments["command"])
            with open_run(folder / place, **arguments) as run:
                result.save(run)
            entries.append(entry(row["name"] or row["sequence"], row["sequence"], result._repr_html_()))
            entries[-1]["pages"].append(page_row(found[-1], f"../{place}/report.html"))
    table = rejects_frame(refused)
    if folder is not None:
        with open_run(folder / "summary", **arguments) as run:
            run.table("rejects", table)
            run.table("traces", flat(found))
            title = f"{len(found)} molecules traced, {table.height} rejected"
            run.text("index.html", index_page(title, tracer, entries, table.to_dicts(), run.manifest["started"]))
    if not found:
        raise InputError(f"no row of {input!r} could be traced; first reason: {refused[0][2]}")
    if json:
        typer.echo(dumps({"traces": found, "rejects": table.to_dicts()}))
    else:
        where = "" if folder is None else f"; see {folder / 'summary' / 'index.html'}"
        typer.echo(f"{len(found)} traced, {table.height} rejected{where}")
        for index, text, reason in refused:
            typer.echo(f"  rejected row {index}: {text!r}: {reason}")


def with_supernodes(result: "Trace", given: Path | None, folder: Path, command: str) -> "Trace":
    """`result` with the groups of `given`, or of an earlier run of the same command in `folder`, read before that is
    emptied. Raises InputError for a file that cannot be used."""
    from isotrace.base.runs import read_manifest

    before = folder / "supernodes.json"
    if given is None and before.is_file() and read_manifest(folder)["command"] == command:
        given = before
    found = replace(result, supernode_file=given)
    _ = found.supernodes  # cached
    return found


def flat(found: list[dict[str, Any]]) -> pl.DataFrame:
    """One row per trace with the numbers a table wants."""
    rows = [
        {
            "index": t["index"],
            "input": t["input"],
            "name": t["name"],
            "value": t["target"]["value"],
            "n_features": t["circuit"]["n_features"],
            "sufficiency": t["circuit"]["sufficiency"],
            "necessity": t["circuit"]["necessity"],
            "control_sufficiency": t["circuit"]["control"]["sufficiency_mean"],
            "control_necessity": t["circuit"]["control"]["necessity_mean"],
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
    yield (
        f"circuit: {circuit['n_features']} features ({circuit['fraction_of_features']:.1%} of the active ones), "
        f"sufficiency {circuit['sufficiency']:.2f} (controls {control['sufficiency_mean']:.2f}), "
        f"necessity {circuit['necessity']:.2f} (controls {control['necessity_mean']:.2f})"
    )
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
