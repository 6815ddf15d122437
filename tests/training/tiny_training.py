"""Small trainings that take a fraction of a second. Started as a script, this file kills some of them."""

import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import tiny
from isotrace.activations.harvest import Corpus
from isotrace.activations.store import StoreStream, write_store
from isotrace.activations.stream import ActivationStream, SubjectStream
from isotrace.dictionaries.build import configure
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.subjects.subject import Subject
from isotrace.training import loop
from isotrace.training.config import TrainingConfig
from isotrace.training.loop import train
from isotrace.training.trainer import Job

# a random tokeniser-valid corpus is enough: what is learned does not matter here
STRINGS = [a + b for a in tiny.MOLECULES for b in tiny.MOLECULES]
RESID = {"hookpoint_in": "layers.{}.resid_post", "hookpoint_out": "layers.{}.resid_post"}
BASE = TrainingConfig(
    tokens=960, batch_tokens=80, learning_rate=1e-2, auxiliary_k=2, dead_after=160, dtype="float32"
)  # fmt: skip
CASES = ("crosslayer", "batchtopk", "matryoshka", "several", "store")
STATISTICS_TOKENS = 320


def corpus(subject: Subject) -> Corpus:
    return Corpus.of(subject, STRINGS)


def jobs(subject: Subject, case: str) -> list[Job]:
    tuned = replace(BASE, finetune_tokens=400, finetune_batch_tokens=100, finetune_learning_rate=1e-3)
    given = {"n_features": 12, "k": 2}
    every = {
        "crosslayer": Job("crosslayer", configure(subject, "crosslayer", window=2, **given), tuned),
        "batchtopk": Job(
            "batchtopk",
            configure(subject, "transcoder", activation="batchtopk", layers=(0, 2), **given),
            replace(BASE, tokens=480, seed=2),
        ),
        "matryoshka": Job(
            "matryoshka",
            configure(subject, "sae", layers=(1,), prefixes=(4, 12), **RESID, **given),
            replace(BASE, batch_tokens=60, clip=None),
        ),
    }
    return [*every.values()] if case in ("several", "store") else [every[case]]


def stream(subject: Subject, wanted: list[Job], folder: Path | None = None) -> ActivationStream:
    """Harvested while training, or from a store in `folder`, which is made if it is not there."""
    settings = {"batch_tokens": 160, "mask_rate": 0.15, "seed": 0, "special_tokens": True}
    sites = loop.hookpoints_of([job.config for job in wanted])
    live = SubjectStream(subject, corpus(subject), sites, block_tokens=320, **settings)
    if folder is None:
        return live
    write_store(live, folder, tokens=1_500, dtype="float32", shard_tokens=700, progress=lambda *_: None)
    return StoreStream(folder, sites, block_tokens=320, seed=1, bad_shards="error", warn=print)


def run(
    subject: Subject, case: str, folder: Path, on_step: Callable = lambda record: None, **changes
) -> list[Dictionary]:
    """Train the jobs of `case`, their `TrainingConfig` changed, with checkpoints in `folder`."""
    wanted = [replace(job, training=replace(job.training, **changes)) for job in jobs(subject, case)]
    source = stream(subject, wanted, folder / "store" if case == "store" else None)
    path = folder / "c.pt"
    return train(source, wanted, path, on_step, subject=subject, corpus=corpus(subject), checkpoint_tokens=320)


def at(step: int, action: Callable[[], None]) -> Callable:
    """A callback that acts on the given step, counted from 1 over all jobs and phases."""
    seen = []

    def on_step(record):
        seen.append(record)
        if len(seen) == step:
            action()

    return on_step


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_write(number: int) -> None:
    """From now on the process dies in the middle of writing its checkpoint number `number`."""
    real, count = torch.save, [0]

    def save(value, file) -> None:
        count[0] += 1
        if count[0] < number:
            return real(value, file)
        whole = io.BytesIO()
        real(value, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        return kill()

    torch.save = save


def main(subject_folder: str, out: str, *plans: str) -> None:
    """Each plan `CASE:step:N` or `CASE:write:N` in a process of its own, which must die by the signal."""
    torch.set_num_threads(1)
    loop.STATISTICS_TOKENS = STATISTICS_TOKENS
    subject = tiny.load_tiny(Path(subject_folder))
    for plan in plans:
        case, kind, number = plan.split(":")
        folder = Path(out) / plan.replace(":", "-")
        folder.mkdir()
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), plan
            assert os.WTERMSIG(status) == signal.SIGKILL, plan
            continue
        try:
            if kind == "write":
                killed_in_write(int(number))
            run(subject, case, folder, at(int(number), kill) if kind == "step" else lambda record: None)
        finally:
            os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
