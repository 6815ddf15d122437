"""isotrace train: learn a dictionary of features."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from isotrace.base.errors import InputError, RunError

LOGS = ("tensorboard", "wandb")


def command(
    subject: Annotated[str, typer.Argument(help="bundled:molm, hf:org/name or a folder.")],
    architecture: Annotated[str, typer.Option(help="sae, transcoder, skip_transcoder or crosslayer.")],
    out: Annotated[Path, typer.Option(help="Run folder; it is the dictionary when the run is done.")],
    data: Annotated[str | None, typer.Option(help="File of sequences (CSV, TSV, Parquet, .smi, FASTA, …).")] = None,
    store: Annotated[Path | None, typer.Option(help="Activation store (isotrace harvest) instead of --data.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to train on.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with everything else (docs/train.md).")] = None,
    features: Annotated[int | None, typer.Option(min=1, help="Features per layer; usual: 8 per dimension.")] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Active features per token and layer; usual: 32.")] = None,
    activation: Annotated[str | None, typer.Option(help="topk, batchtopk, relu, jumprelu or gated.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Layers a crosslayer feature writes to.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers covered, as 0,2,4; usual: all.")] = None,
    seeds: Annotated[str | None, typer.Option(help="As 0,1,2: one dictionary per seed from one stream.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Start again in a folder that holds a run.")] = False,
    skip_bad_shards: Annotated[bool, typer.Option(help="Leave damaged shards of --store out, and name them.")] = False,
    dtype: Annotated[str, typer.Option(help="Of the saved weights: float32, float16 or bfloat16.")] = "float32",
    log: Annotated[list[str] | None, typer.Option(help="Also log to tensorboard or wandb.")] = None,
    parallel: Annotated[str, typer.Option(help="What processes share under torchrun: data or features.")] = "data",
    domain: Annotated[str | None, typer.Option(help="What tokens stand for, where the subject does not say.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of the file that holds the sequences.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Train dictionaries on a subject's activations; every step is logged, and a killed run resumes exactly."""
    from isotrace.base.runs import dumps
    from isotrace.subjects.subject import load_subject
    from isotrace.training.jobs import make_jobs, read_settings
    from isotrace.verbs.training import Sources, run_training

    if (data is None) == (store is None):
        raise InputError("give --data with sequences, or --store with harvested activations.")
    if bad := [name for name in log or [] if name not in LOGS]:
        raise InputError(f"--log {bad[0]}: use {' or '.join(LOGS)}; log.jsonl is always written.")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise InputError(f"--dtype {dtype}: use float32, float16 or bfloat16.")
    if parallel not in ("data", "features"):
        raise InputError(f"--parallel {parallel}: use data or features.")
    settings = read_settings(config)
    given = {"n_features": features, "k": k, "activation": activation, "window": window}
    given["layers"] = None if layers is None else numbers("--layers", layers)
    settings["dictionary"] |= {name: value for name, value in given.items() if value is not None}
    settings["training"] |= {} if tokens is None else {"tokens": tokens}
    if seeds is not None:
        if settings["jobs"]:
            raise InputError("--seeds and [[jobs]] both say what to train: give one of them.")
        settings["jobs"] = [{"name": f"seed-{s}", "training": {"seed": s}} for s in numbers("--seeds", seeds)]
    loaded = load_subject(subject, domain=domain, device=local_device())
    jobs = make_jobs(loaded, architecture, settings)
    folder_check(out, resume, overwrite)
    sources = Sources(data, column, store, skip_bad_shards, config)
    options: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "dtype": dtype, "logs": log or []}
    summary = run_training(loaded, jobs, settings, sources, out, **options, parallel=parallel)
    if summary is None:  # another process of this run reports
        return
    typer.echo(dumps(summary) if json else "\n".join(describe(summary)))


def local_device() -> str:
    """This process's GPU where there is one."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: give whole numbers, as 0,1,2.") from None


def folder_check(out: Path, resume: bool, overwrite: bool) -> None:
    """Training is never thrown away by running a command twice."""
    unfinished = (out / "checkpoint.pt").exists()
    if unfinished and not (resume or overwrite):
        raise RunError(f"{out} holds an unfinished run: go on with --resume, or start again with --overwrite.")
    if resume and not unfinished:
        if (out / "manifest.json").exists():
            raise RunError(f"{out} holds no checkpoint: the run is finished, or stopped before its first one.")
        raise RunError(f"{out} holds no run to resume: leave --resume out.")


def describe(summary: dict[str, Any]):
    for one in summary["dictionaries"]:
        fve = sum(one["fve"]) / len(one["fve"])
        yield (
            f"{one['folder']}: {one['architecture']} {one['activation']}, {one['n_features']} features per layer, "
            f"FVE {fve:.3f}, L0 {one['l0']:.1f}, dead {one['dead']:.1%} after {one['tokens']:,} tokens "
            f"({one['tokens_per_s']:,.0f} per second)"
        )
    for warning in summary["warnings"]:
        yield f"warning: {warning}"
    if summary["n_rejected"]:
        yield f"{summary['n_rejected']} sequences rejected: see rejects.parquet"
