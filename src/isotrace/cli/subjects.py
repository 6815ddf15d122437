"""isotrace subjects: which models can be named, and what one of them is."""

import sys
from typing import Annotated, Any

import typer


def command(
    source: Annotated[
        str | None,
        typer.Argument(
            help="Load this one and print its facts: bundled:NAME, pypi:package/model, hf:org/name, folder."
        ),
    ] = None,
    domain: Annotated[str | None, typer.Option(help="What its tokens stand for, where it does not say.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """List the bundled and published subjects, or load one and print its facts."""
    from isotrace.base.runs import dumps

    result: dict[str, Any] = {"subjects": listed()} if source is None else facts(source, domain)
    if json:
        typer.echo(dumps(result))
    elif source is None:
        show(result["subjects"])
    else:
        for name, value in result.items():
            shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
            typer.echo(f"{name.replace('_', ' ')}: {', '.join(shown) if isinstance(shown, list) else shown}")


def listed() -> list[dict[str, Any]]:
    """One row per subject that is bundled or carried by a known wheel; nothing is downloaded or loaded.

    `megabytes` (10⁶ bytes) is on disk for a bundled subject, else the download: a wheel may carry several subjects.
    """
    from isotrace.subjects.sources.published import SUBJECTS
    from isotrace.subjects.sources.pypi import is_cached
    from isotrace.subjects.sources.source import BUNDLED

    rows = [bundled(name) for name in BUNDLED]
    for subject in SUBJECTS:
        names = ("source", "architecture", "n_layers", "d_model", "domain", "about")
        row = {name: getattr(subject, name) for name in names}
        wheel = subject.wheel
        row |= {"licence": wheel.licence, "paper": wheel.paper, "megabytes": wheel.megabytes}
        rows.append(row | {"cached": is_cached(subject)})
    return rows


def bundled(name: str) -> dict[str, Any]:
    """A row of `listed`, read from the files of the bundled subject."""
    from json import loads

    from isotrace.subjects.sources.source import assets

    folder = assets() / name
    config, record = (loads((folder / file).read_text()) for file in ("config.json", "subject.json"))
    return {
        "source": f"bundled:{name}",
        "architecture": config["architectures"][0],
        "n_layers": config["num_hidden_layers"],
        "d_model": config["hidden_size"],
        "domain": record["domain"],
        "about": "trained by this project on SMILES, see its card",
        "licence": "Apache-2.0",
        "paper": None,
        "megabytes": round(sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) / 1e6, 1),
        "cached": True,
    }


def facts(source: str, domain: str | None) -> dict[str, Any]:
    """What a loaded subject is. Raises SubjectError when it cannot be loaded."""
    from isotrace.subjects.loading import tokenizer_hash
    from isotrace.subjects.subject import load_subject

    subject = load_subject(source, domain=domain)
    return {
        "source": subject.source,
        "family": subject.family.model_type,
        "architecture": (subject.model.config.architectures or [type(subject.model).__name__])[0],
        "language_model_head": subject.has_head,
        "n_layers": subject.n_layers,
        "d_model": subject.d_model,
        "parameters": subject.model.num_parameters(),
        "vocabulary": len(subject.tokenizer),
        "max_tokens": subject.max_tokens,
        "domain": subject.files.domain,
        "hookpoints": [f"layers.N.{kind}" for kind in subject.family.hookpoints],
        "weights_sha256": subject.files.weights_sha256,
        "tokenizer_sha256": tokenizer_hash(subject.tokenizer),
        "folder": str(subject.files.folder),
    }


def show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in ("source", "architecture", "layers × d_model", "domain", "licence", "MB", "cached", "about"):
        table.add_column(name, overflow="fold", justify="right" if name == "MB" else "left")
    for row in rows:
        table.add_row(
            row["source"],
            row["architecture"],
            f"{row['n_layers']} × {row['d_model']}",
            row["domain"],
            row["licence"],
            f"{row['megabytes']:.1f}",
            "bundled" if row["source"].startswith("bundled:") else "yes" if row["cached"] else "no",
            row["about"],
        )
    # A file or a pipe gets whole source strings, however narrow the terminal it was started from.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
