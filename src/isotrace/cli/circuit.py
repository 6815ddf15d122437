"""isotrace circuit: which features does a task rest on, and can they do it alone?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from isotrace.report.circuit.result import CircuitResult


def command(
    subject: Annotated[str, typer.Argument(help="bundled:molm, pypi:rxnfp/bert_pretrained, hf:org/name or a folder.")],
    dictionary: Annotated[str, typer.Argument(help="bundled:molm-clt or a folder.")],
    data: Annotated[str, typer.Option(help="File of labelled sequences (CSV, TSV, Parquet), or - for a CSV on stdin.")],
    label: Annotated[str, typer.Option(help="Column of labels: classes, numbers, or 0/1 strings per residue.")],
    out: Annotated[Path, typer.Option(help="Run folder.")],
    split: Annotated[str | None, typer.Option(help="Column that names parts: train, valid, test.")] = None,
    task: Annotated[
        str | None, typer.Option(help="class, regression, residue, masked or mutation; else told from the labels.")
    ] = None,
    mutations: Annotated[str | None, typer.Option(help="Column of mutations (A24G:K31R), for --task mutation.")] = None,
    group: Annotated[str | None, typer.Option(help="Column of groups that parts keep together.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of the file that holds the sequences.")] = None,
    domain: Annotated[str | None, typer.Option(help="What tokens stand for, where the subject does not say.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    mediator: Annotated[
        str, typer.Option(help="What the circuit is made of: feature, neuron, head, attention or mlp.")
    ] = "feature",
    ranking: Annotated[
        str, typer.Option(help="attribution_patching, relp or eap_ig; of heads and the like any method for nodes.")
    ] = "attribution_patching",
    sizes: Annotated[str | None, typer.Option(help="Numbers of features to keep, by commas.")] = None,
    metric: Annotated[str | None, typer.Option(help="(macro_)auroc, balanced_accuracy, spearman or r2.")] = None,
    controls: Annotated[int, typer.Option(min=2, help="Matched random circuits per size.")] = 20,
    bootstrap: Annotated[int, typer.Option(min=20, help="Draws of groups for the intervals.")] = 500,
    limit: Annotated[int | None, typer.Option(min=3, help="At most so many to discover on, and to report on.")] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="Run folder of another task's circuit, to count shared parts; repeatable.")
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="Run of annotate that names the features, instead of the dictionary's shelf.")
    ] = None,
    drawn: Annotated[int, typer.Option(min=0, help="Report sequences to draw.")] = 12,
    overwrite: Annotated[bool, typer.Option(help="Replace another command's run in --out.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of split, controls and bootstrap.")] = 0,
) -> None:  # fmt: skip
    """Find the circuit of a task, and prove it: sufficiency, necessity, controls, intervals, on held-out groups."""
    from isotrace.base.errors import InputError, SubjectError
    from isotrace.base.identity import Source
    from isotrace.base.progress import command_line, progress
    from isotrace.base.runs import dumps, open_run
    from isotrace.datasets.inputs import read_inputs
    from isotrace.datasets.tasks import prepare
    from isotrace.dictionaries.saving import load_dictionary
    from isotrace.dictionaries.shelf import shelf_of
    from isotrace.discovery.overlap import overlap_with
    from isotrace.discovery.tasks.task_circuit import TaskConfig, find_circuit
    from isotrace.domains.domain import domain_of
    from isotrace.report.circuit.result import circuit_result
    from isotrace.subjects.subject import load_subject

    try:
        wanted = None if sizes is None else tuple(int(n) for n in sizes.split(","))
    except ValueError:
        raise InputError(f"--sizes {sizes!r}: give whole numbers, such as 10,50,100.") from None
    config = TaskConfig(mediator, ranking, wanted, metric, controls, bootstrap, seed)
    loaded = load_subject(subject, domain=domain)
    if loaded.files.domain is None:
        raise SubjectError(f"{subject} does not say what its tokens stand for: give --domain.")
    features = load_dictionary(dictionary, loaded)
    shelf = shelf_of(features, names=names)
    reader = domain_of(loaded.files.domain)
    rows, rejects = read_inputs(data, column=column)
    inputs: dict[str, Path | str | Source] = {
        "subject": Source.of(subject, loaded),
        "dictionary": Source.of(dictionary, features),
        "data": data if data == "-" else Path(data),
    }
    shown = lambda items, text: progress(list(items), text)  # noqa: E731
    with open_run(out, command=command_line(), seed=seed, inputs=inputs, overwrite=overwrite) as run:
        prepared = prepare(
            loaded, reader, rows, label=label, kind=task, split=split, group=group, mutations=mutations, seed=seed,  # pyright: ignore[reportArgumentType]
            limit=limit, rejects=rejects, progress=lambda items: shown(items, "reading"),
        )  # fmt: skip
        found = find_circuit(loaded, features, prepared, config, work=run.work, progress=shown)
        result = circuit_result(
            found, loaded, reader, dictionary, shelf.tables, n_drawn=drawn,
            overlap=overlap_with(found, against) if against else (), progress=shown,
        )  # fmt: skip
        result.write(run)
    if json:
        typer.echo(dumps(result.to_dict() | {"rejects": prepared.rejects.to_dicts()}))
    else:
        show(result, out)


def show(found: "CircuitResult", out: Path) -> None:
    """A table in the terminal: circuits of rising size beside their controls."""
    from rich.console import Console
    from rich.table import Table

    summary = found.summary
    metric = summary["task_metric"]
    title = f"{summary['task']['label']}: {metric['name']} {metric['subject']:.3f} (chance {metric['chance']:.3f})"
    table = Table(title=title, title_justify="left")
    for name in ("features", "share", "free-running [95 % CI]", "random", "neurons", "teacher-forced"):
        table.add_column(name, justify="right")
    for entry in summary["sweep"]:
        table.add_row(
            str(entry["n"]), f"{entry['fraction']:.2%}", _share(entry["free_running"], "sufficiency"),
            _share(entry["random"], "mean"), _share(entry["neurons"], "sufficiency"),
            _share(entry["teacher_forced"], "sufficiency"),
        )  # fmt: skip
    Console(width=120).print(table)
    for level, chosen in summary["chosen"].items():
        said = "no circuit keeps them there"
        if chosen is not None:
            kept = _share(chosen["free_running"], "sufficiency")
            said = f"{chosen['n']} features, which keep {kept} on the report part"
        typer.echo(f"chosen on the discovery part to keep {level} % of the metric above chance: {said}")
    fall = summary["necessity"]
    typer.echo(
        f"without {fall['n']} features the metric above chance falls by {_share(fall, 'fall')}, "
        f"without as many random ones by {_share(fall['random'], 'mean')}"
    )
    for warning in summary["warnings"]:
        typer.echo(f"warning: {warning}")
    for index, text, reason in found.tables["rejects"].rows():
        typer.echo(f"  rejected row {index}: {text[:60]!r}: {reason}")
    typer.echo(f"report: {out / 'report.html'}")


def _share(entry: dict[str, Any], key: str) -> str:
    value, low, high = ("–" if v is None else f"{v:.2f}" for v in (entry[key], *entry["ci"]))
    return f"{value} [{low}, {high}]"
