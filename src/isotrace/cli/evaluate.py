"""isotrace evaluate: how much of the subject is left when dictionaries stand in for it?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isotrace.base.errors import InputError

if TYPE_CHECKING:
    import polars as pl

    from isotrace.evaluation.comparison import Comparison


def command(
    subject: Annotated[str, typer.Argument(help="bundled:molm, hf:org/name or a folder.")],
    dictionary: Annotated[list[str], typer.Argument(help="bundled:molm-clt or folders; the first is compared with.")],
    data: Annotated[str, typer.Option(help="File of sequences (CSV, TSV, Parquet, .smi, SDF, …), or - for stdin.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; without it only what is printed.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    domain: Annotated[str | None, typer.Option(help="What tokens stand for, where the subject does not say.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of the file that holds the sequences.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first usable rows.")] = None,
    mask_rate: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of tokens masked.")] = 0.15,
    bootstrap: Annotated[int, typer.Option(min=20, help="Draws of sequences for the intervals.")] = 500,
    controls: Annotated[bool, typer.Option(help="Also controls, fitted on a quarter of the sequences.")] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace another command's run in --out.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of masks, controls and bootstrap.")] = 0,
) -> None:
    """Fidelity of dictionaries and of controls with as many active features, on held-out sequences."""
    from isotrace.base.identity import Source
    from isotrace.base.progress import command_line, progress
    from isotrace.base.runs import dumps, open_run
    from isotrace.dictionaries.saving import load_dictionary
    from isotrace.evaluation.comparison import compare
    from isotrace.report.evaluation import save_evaluation
    from isotrace.subjects.subject import load_subject
    from isotrace.verbs.corpus import usable

    if repeated := [name for place, name in enumerate(dictionary) if name in dictionary[:place]]:
        raise InputError(f"{repeated[0]!r} is given twice: name each dictionary once.")
    loaded = load_subject(subject, domain=domain)
    dictionaries = {name: load_dictionary(name, loaded) for name in dictionary}
    sequences, rejects = usable(loaded, data, column, limit)
    if not sequences:
        first = f"; first reason: {rejects['reason'][0]}" if rejects.height else ""
        raise InputError(f"no row of {data!r} can be evaluated{first}")

    def run() -> "Comparison":
        return compare(
            loaded,
            dictionaries,
            sequences,
            mask_rate=mask_rate,
            seed=seed,
            n_bootstrap=bootstrap,
            controls=controls,
            progress=lambda batches: progress(batches, "evaluating"),
        )

    if out is None:
        comparison = run()
    else:
        inputs: dict[str, Path | str | Source] = {"subject": Source.of(subject, loaded)}
        inputs |= {f"dictionary {n}": Source.of(*pair) for n, pair in enumerate(dictionaries.items(), start=1)}
        inputs["data"] = data if data == "-" else Path(data)
        with open_run(out, command=command_line(), seed=seed, inputs=inputs, overwrite=overwrite) as opened:
            comparison = run()
            save_evaluation(opened, comparison, rejects)
    if json:
        typer.echo(dumps(comparison.to_dict() | {"rejects": rejects.to_dicts()}))
    else:
        show(comparison, rejects, out)


def show(comparison: "Comparison", rejects: "pl.DataFrame", out: Path | None) -> None:
    """A table in the terminal: dictionaries, then controls."""
    from rich.console import Console
    from rich.table import Table

    title = f"{comparison.subject}: {comparison.n_sequences} sequences, {comparison.n_masked} masked tokens"
    table = Table(title=title, title_justify="left")
    for name in ("", "L0", "loss recovered [95 % CI]", "teacher-forced", "− first", "top-1", "KL", "FVE", "dead"):
        table.add_column(name, justify="left" if not name else "right")
    for place, entry in enumerate((*comparison.dictionaries, *comparison.controls)):
        if place == len(comparison.dictionaries):
            table.add_section()
        table.add_row(*cells(entry, first=place == 0))
    console = Console(width=130)
    console.print(table)
    for warning in comparison.warnings:
        typer.echo(f"warning: {warning}")
    if len(comparison.dictionaries) > 1:
        typer.echo(f"not dominated: {', '.join(comparison.pareto) or 'none'}")
    for index, text, reason in rejects.rows():
        typer.echo(f"  rejected row {index}: {text!r}: {reason}")
    if out is not None:
        typer.echo(f"report: {out / 'report.html'}")


def cells(entry: dict[str, Any], *, first: bool) -> Sequence[str]:
    """One row of the table: a control that does not apply says why."""
    if entry.get("reason"):
        return [entry["name"], "", entry["reason"]]
    free, forced = entry["free_running"], entry["teacher_forced"]
    paired = entry["paired"] and entry["paired"]["free_running"]["loss_recovered"]["difference"]
    fve = sum(entry["fve"]) / len(entry["fve"])
    return [
        entry["name"],
        f"{entry['l0']:.1f}",
        f"{free['loss_recovered']:.3f} [{free['ci'][0]:.3f}, {free['ci'][1]:.3f}]",
        f"{forced['loss_recovered']:.3f}",
        "" if first else "–" if paired is None else f"{paired:+.3f}",
        f"{free['top1_agreement']:.3f}",
        f"{free['kl']:.3f}",
        f"{fve:.3f}",
        f"{entry['dead_fraction']:.1%}",
    ]
