"""A training run in its folder: stream, logs, checkpoint, dictionaries, pictures."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from isotrace.activations.manifest import read_manifest
from isotrace.activations.store import StoreStream
from isotrace.activations.stream import ActivationStream
from isotrace.base.errors import RunError
from isotrace.base.identity import Source, identity
from isotrace.base.runs import Run, open_run
from isotrace.datasets.inputs import rejects_frame
from isotrace.dictionaries.registry import ARCHITECTURES
from isotrace.dictionaries.saving import reference, save_dictionary
from isotrace.report.curves import training_curves
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Subject
from isotrace.training.callbacks import Callback, JsonlLog, Plan, ProgressBar, TensorBoardLog, WandbLog, read_log
from isotrace.training.checkpoint import read_checkpoint
from isotrace.training.jobs import make_stream
from isotrace.training.loop import block_tokens, hookpoints_of, subject_stream, train
from isotrace.training.parallel import shares_of
from isotrace.training.trainer import Job, as_begun
from isotrace.training.world import World
from isotrace.verbs.corpus import read_corpus
from isotrace.verbs.loading import named

if TYPE_CHECKING:
    from isotrace.verbs.train import TrainRequest

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
PASSES, FEWEST_TOKENS, MOST_TOKENS = 4, 200_000, 8_000_000
CHECKPOINT_TOKENS, CHECKPOINTS = 500_000, 10  # at most so far apart, at least so many
SHOWN_REJECTS = 3  # in the summary; rejects.parquet has all


def run_training(
    subject: Subject, jobs: Sequence[Job], settings: Mapping[str, Any], request: "TrainRequest", *, bar: bool
) -> dict[str, Any] | None:
    """Train `jobs` into `request.out` and return the summary that `--json` prints; None on processes that only help.

    The folder ends as a run: manifest, rejects, log, curves, and the dictionary itself, or one folder per job where
    there are several. The checkpoint is removed when all is saved. `bar`: whether it is shown on stderr.
    """
    world, started, out = World(), time.perf_counter(), request.out
    begun = read_checkpoint(out / CHECKPOINT) if request.resume else None
    stream_config, warnings = make_stream(settings), []
    corpus, rejects = None, rejects_frame([])
    if request.store is None:
        corpus, rejects = read_corpus(subject, request.data, request.column)
        available = len(corpus.ids) if is_pooled(hookpoints_of([job.config for job in jobs])) else len(corpus.tokens)
    else:
        available = read_manifest(request.store).tokens
    jobs = world.same(as_begun(with_tokens(jobs, settings, available), begun and begun["settings"], subject.device))
    if corpus is not None:
        stream: ActivationStream = subject_stream(subject, corpus, jobs, stream_config, world)
    else:
        stream = StoreStream(
            request.store or "",
            hookpoints_of([job.config for job in jobs]),
            block_tokens=block_tokens(jobs, stream_config, world),
            seed=stream_config.seed,
            bad_shards="skip" if request.skip_bad_shards else "error",
            warn=warnings.append,
            rank=world.rank,
            world_size=world.size,
        )
        check_store(stream, subject)
    common: dict[str, Any] = {"subject": subject, "corpus": corpus, "world": world, "parallel": request.parallel}
    longest = max(job.training.tokens for job in jobs)
    common["checkpoint_tokens"] = min(CHECKPOINT_TOKENS, max(1, longest // CHECKPOINTS))
    if world.rank:
        train(stream, jobs, out / CHECKPOINT, **common)
        world.close()
        return None
    arguments = run_of(request, subject, jobs[0].training.seed)
    data = arguments["inputs"]["data" if request.store is None else "store"]
    with open_run(out, **arguments, overwrite=request.overwrite, resume=request.resume) as run:
        shares = [f"checkpoint.{slot}.rank{rank}.pt" for slot in (0, 1) for rank in range(world.size)]
        folders = [out if len(jobs) == 1 else run.folder(job.name) for job in jobs]
        run.expect(CHECKPOINT, LOG, *(shares if request.parallel == "features" else []))
        run.table("rejects", rejects)
        makers: list[Callable[[], Callback]] = []
        makers += [lambda: TensorBoardLog(out / "tensorboard")] if "tensorboard" in request.log else []
        makers += [lambda: WandbLog(out, {"jobs": [job.settings() for job in jobs]})] if "wandb" in request.log else []
        makers += [lambda: JsonlLog(out / LOG), *([lambda: Plan(plan(jobs, available))] if bar else [])]
        makers += [lambda: ProgressBar(totals(jobs))] if bar else []
        with ExitStack() as open_ones:
            watchers: list[Callback] = []
            for make in makers:
                watchers.append(make())
                open_ones.callback(watchers[-1].close)

            def on_step(record: dict[str, Any]) -> None:
                for watcher in watchers:
                    watcher(record)

            dictionaries = train(stream, jobs, out / CHECKPOINT, on_step, **common, warn=warnings.append)
        records = read_log(out / LOG)
        summary: dict[str, Any] = {"dictionaries": [], "n_rejected": rejects.height, "warnings": warnings}
        summary["rejects"] = rejects.head(SHOWN_REJECTS).to_dicts()
        for job, dictionary, folder in zip(jobs, dictionaries, folders, strict=True):
            own = [r for r in records if r["job"] == job.name]
            last = next(r for r in reversed(own) if r["phase"] == "reconstruct")
            training = {"training": asdict(job.training), "stream": stream.describe(), "source": Path(data).name}
            training |= {"final": {key: last[key] for key in ("loss", "fve", "l0", "dead")}}
            save_dictionary(
                dictionary, folder, reference(subject), dtype=getattr(torch, request.dtype), training=training
            )
            names = [str((folder / n).relative_to(out)) for n in ("dictionary.json", "weights.safetensors")]
            run.adopt(*names)
            shape = {
                key: getattr(job.config, key) for key in ("architecture", "activation", "n_features", "k", "window")
            }
            kept = {key: last[key] for key in ("tokens", "loss", "fve", "l0", "dead", "tokens_per_s")}
            summary["dictionaries"].append({"name": job.name, "folder": str(folder), **shape, **kept})
        run.text("training.svg", training_curves(records))
        summary["seconds"] = round(time.perf_counter() - started, 1)
        run.json("summary", summary)
        finish(run)
    world.close()
    return summary


def run_of(request: "TrainRequest", subject: Subject, seed: int) -> dict[str, Any]:
    """What the run depends on; `seed` of the first dictionary."""
    inputs: dict[str, Any] = {"subject": Source.of(subject.source, subject)}
    if request.store is None:
        inputs["data"] = named(request.data, request.column)
    else:
        inputs["store"] = named(request.store)
    inputs |= {} if request.config is None else {"config": request.config}
    return {"command": request.command, "seed": seed, "inputs": inputs}


def with_tokens(jobs: Sequence[Job], settings: Mapping[str, Any], available: int) -> list[Job]:
    """`jobs`, where neither the command nor its file says how many tokens, with PASSES passes of those there are."""
    told = {entry["name"] for entry in settings["jobs"] if "tokens" in entry.get("training", {})}
    usual = min(MOST_TOKENS, max(FEWEST_TOKENS, PASSES * available))
    if "tokens" in settings["training"]:
        return [*jobs]
    own = {job.name: ARCHITECTURES[job.config.architecture].fitted or usual for job in jobs}
    return [j if j.name in told else replace(j, training=replace(j.training, tokens=own[j.name])) for j in jobs]


def plan(jobs: Sequence[Job], available: int) -> list[str]:
    """A line for every job: tokens, or sequences where they are pooled, passes of the data, steps."""
    lines = []
    for job in jobs:
        tokens, batch = job.training.tokens, job.training.batch_tokens
        rows = "sequences" if is_pooled(job.config.reads) else "tokens"
        passes = f"{tokens / available:.1f} passes of {available:,}"
        lines.append(f"{job.name}: {tokens:,} {rows}, {passes}, in {-(-tokens // batch):,} steps of {batch:,}")
    return lines


def check_store(stream: StoreStream, subject: Subject) -> None:
    """Raises RunError when the store was harvested from another subject."""
    there = stream.manifest.subject
    if there.identity != identity(subject):
        raise RunError(f"{stream.folder} was harvested from {there.source}, not from {subject.source}: harvest again.")


def finish(run: Run) -> None:
    """The checkpoint has done its work."""
    parts = [run.path / CHECKPOINT, *shares_of(run.path / CHECKPOINT)]
    for part in parts:
        part.unlink(missing_ok=True)
    run.adopt(LOG, *(part.name for part in parts))


def totals(jobs: Sequence[Job]) -> dict[tuple[str, str], int]:
    """Tokens of every (job, phase)."""
    found = {(job.name, "reconstruct"): job.training.tokens for job in jobs}
    return found | {(job.name, "finetune"): job.training.finetune_tokens for job in jobs}
