"""What watches a training run: each takes the record of a step and is closed at the end.

A record holds job, phase, step, tokens, loss and its parts, fve (per layer), l0, dead (share), gradient_norm,
tokens_per_s, eta_s; see `Trainer.record`.
"""

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from isotrace.base.errors import RunError
from isotrace.base.progress import Lines, clock

Record = dict[str, Any]
TIMED_STEPS = 5


class Callback(Protocol):
    def __call__(self, record: Record) -> None: ...

    def close(self) -> None: ...


class JsonlLog:
    """One line per step in `path`. A resumed run repeats the steps after its checkpoint: their lines are replaced."""

    def __init__(self, path: Path) -> None:
        self.path, self.seen = path, set()
        self.file = path.open("a")

    def __call__(self, record: Record) -> None:
        key = (record["job"], record["phase"])
        if key not in self.seen:
            self.seen.add(key)
            self._drop_from(*key, record["step"])
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def _drop_from(self, job: str, phase: str, step: int) -> None:
        self.file.close()
        kept = [r for r in read_log(self.path) if (r["job"], r["phase"]) != (job, phase) or r["step"] < step]
        self.path.write_text("".join(json.dumps(r) + "\n" for r in kept))
        self.file = self.path.open("a")

    def close(self) -> None:
        self.file.close()


def read_log(path: Path) -> list[Record]:
    """The records of a JSONL log; a last line that a kill cut short is left out. Raises RunError for another one
    that is no record."""
    records, lines = [], path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise RunError(f"line {number} of {path} is damaged: mend or delete it, then resume.") from None
    return records


class TensorBoardLog:
    """Scalars under `job/phase/name` in the folder `path`. Needs the extra `isotrace[tensorboard]`."""

    def __init__(self, path: Path) -> None:
        _need("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(path))

    def __call__(self, record: Record) -> None:
        for name, value in scalars(record).items():
            self.writer.add_scalar(f"{record['job']}/{record['phase']}/{name}", value, record["tokens"])

    def close(self) -> None:
        self.writer.close()


class WandbLog:
    """Scalars to Weights & Biases, mode and account from its own environment. Needs the extra `isotrace[wandb]`."""

    def __init__(self, path: Path, settings: Record) -> None:
        _need("wandb", "wandb")
        import wandb  # pyright: ignore[reportMissingImports]

        self.run = wandb.init(project="isotrace", dir=str(path), config=settings)

    def __call__(self, record: Record) -> None:
        prefix = f"{record['job']}/{record['phase']}"
        self.run.log({f"{prefix}/{n}": v for n, v in scalars(record).items()} | {f"{prefix}/tokens": record["tokens"]})

    def close(self) -> None:
        self.run.finish()


class ProgressBar:
    """tokens/s, loss, FVE, L0, dead share and time left on stderr; where that is no terminal, in lines.
    `totals` are the tokens of each (job, phase)."""

    def __init__(self, totals: dict[tuple[str, str], int]) -> None:
        self.totals, self.tasks, self.bar, self.lines = totals, {}, None, Lines()
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%")
        self.bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=Console(file=sys.stderr))
        self.bar.start()

    def __call__(self, record: Record) -> None:
        key = (record["job"], record["phase"])
        if self.bar and key not in self.tasks:
            self.tasks[key] = self.bar.add_task(" ".join(key), total=self.totals[key], text="")
        fve = sum(record["fve"]) / len(record["fve"])
        text = (
            f"{record['tokens_per_s']:,.0f} tokens/s  loss {record['loss']:.3f}  FVE {fve:.3f}  L0 {record['l0']:.1f}"
        )
        if "dead" in record:
            text += f"  dead {record['dead']:.1%}"
        if record["eta_s"] is not None:
            text += f"  {clock(record['eta_s'])} left"
        if self.bar:
            self.bar.update(self.tasks[key], completed=record["tokens"], text=text)
        else:
            self.lines(f"{' '.join(key)}: {record['tokens']:,} of {self.totals[key]:,} tokens  {text}")

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


class Plan:
    """What is going to be done, on stderr: `lines` at once and, where no bar shows it, how long it will take as soon as
    the first steps have shown."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.waiting = not sys.stderr.isatty()
        for line in lines:
            print(line, file=sys.stderr, flush=True)

    def __call__(self, record: Record) -> None:
        if self.waiting and record["step"] >= TIMED_STEPS and record["eta_s"] is not None:
            self.waiting = False
            speed = f"{record['tokens_per_s']:,.0f} tokens per second"
            print(f"about {clock(record['eta_s'])} to go at {speed}", file=sys.stderr, flush=True)

    def close(self) -> None: ...


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record, FVE by layer."""
    counters = ("step", "tokens", "eta_s")
    plain = {n: float(v) for n, v in record.items() if isinstance(v, float | int) and n not in counters}
    return plain | {f"fve/{layer}": float(value) for layer, value in enumerate(record["fve"])}


def _need(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise RunError(f"{module} is not installed: pip install 'isotrace[{extra}]', or log without it.")
