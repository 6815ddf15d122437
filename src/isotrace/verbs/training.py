"""A training run in a folder: sources, logs, checkpoint, dictionaries, pictures."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from isotrace.activations.store import StoreStream
from isotrace.activations.stream import ActivationStream
from isotrace.base.errors import RunError
from isotrace.base.identity import Source, identity
from isotrace.base.progress import command_line
from isotrace.base.runs import Run, open_run
from isotrace.datasets.inputs import rejects_frame
from isotrace.dictionaries.saving import reference, save_dictionary
from isotrace.report.curves import training_curves
from isotrace.subjects.subject import Subject
from isotrace.training.callbacks import Callback, JsonlLog, ProgressBar, TensorBoardLog, WandbLog, read_log
from isotrace.training.checkpoint import read_checkpoint
from isotrace.training.jobs import make_stream
from isotrace.training.loop import block_tokens, hookpoints_of, subject_stream, train
from isotrace.training.parallel import Parallel, shares_of
from isotrace.training.trainer import Job, as_begun
from isotrace.training.world import World
from isotrace.verbs.corpus import read_corpus

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


@dataclass(frozen=True)
class Sources:
    """Where activations come from: sequences in `data`, or a `store` of them. `config` is the settings file."""

    data: str | None
    column: str | None
    store: Path | None
    skip_bad_shards: bool
    config: Path | None

    def inputs(self) -> dict[str, Path | str]:
        paths = {"data": self.data and Path(self.data), "store": self.store, "config": self.config}
        return {name: path for name, path in paths.items() if path}


def run_training(
    subject: Subject,
    jobs: Sequence[Job],
    settings: Mapping[str, Any],
    sources: Sources,
    out: Path,
    *,
    resume: bool,
    overwrite: bool,
    dtype: str,
    logs: Sequence[str],
    parallel: Parallel,
) -> dict[str, Any] | None:
    """Train `jobs` into `out` and return the summary that `--json` prints; None on processes that only help.

    The folder ends as a run: manifest, rejects, log, curves, and the dictionary itself, or one folder per job where
    there are several. The checkpoint is removed when all is saved.
    """
    world, started = World(), time.perf_counter()
    begun = read_checkpoint(out / CHECKPOINT) if resume else None
    jobs = world.same(as_begun(jobs, begun and begun["settings"], subject.device))
    stream_config, warnings = make_stream(settings), []
    corpus, rejects = None, rejects_frame([])
    if sources.data is not None:
        corpus, rejects = read_corpus(subject, sources.data, sources.column)
        stream: ActivationStream = subject_stream(subject, corpus, jobs, stream_config, world)
    else:
        assert sources.store is not None
        stream = StoreStream(
            sources.store,
            hookpoints_of([job.config for job in jobs]),
            block_tokens=block_tokens(jobs, stream_config, world),
            seed=stream_config.seed,
            bad_shards="skip" if sources.skip_bad_shards else "error",
            warn=warnings.append,
            rank=world.rank,
            world_size=world.size,
        )
        check_store(stream, subject)
    common: dict[str, Any] = {"subject": subject, "corpus": corpus, "world": world, "parallel": parallel}
    if world.rank:
        train(stream, jobs, out / CHECKPOINT, **common)
        world.close()
        return None
    inputs = {"subject": Source.of(subject.source, subject)} | sources.inputs()
    arguments = {"command": command_line(), "seed": jobs[0].training.seed, "inputs": inputs}
    with open_run(out, **arguments, overwrite=overwrite, resume=resume) as run:
        shares = [f"checkpoint.{slot}.rank{rank}.pt" for slot in (0, 1) for rank in range(world.size)]
        folders = [out if len(jobs) == 1 else run.folder(job.name) for job in jobs]
        run.expect(CHECKPOINT, LOG, *(shares if parallel == "features" else []))
        run.table("rejects", rejects)
        makers: list[Callable[[], Callback]] = []
        makers += [lambda: TensorBoardLog(out / "tensorboard")] if "tensorboard" in logs else []
        makers += [lambda: WandbLog(out, {"jobs": [job.settings() for job in jobs]})] if "wandb" in logs else []
        makers += [lambda: JsonlLog(out / LOG), lambda: ProgressBar(totals(jobs))]
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
        for job, dictionary, folder in zip(jobs, dictionaries, folders, strict=True):
            own = [r for r in records if r["job"] == job.name]
            last = next(r for r in reversed(own) if r["phase"] == "reconstruct")
            training = {"training": asdict(job.training), "stream": stream.describe(), "source": describe(sources)}
            training |= {"final": {key: last[key] for key in ("loss", "fve", "l0", "dead")}}
            save_dictionary(dictionary, folder, reference(subject), dtype=getattr(torch, dtype), training=training)
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


def describe(sources: Sources) -> str:
    """The name of the data, without the folder it lay in."""
    return Path(sources.data or str(sources.store)).name
