"""Training a copy of a subject with its head: fixed batches, early stopping, and a state that a killed run takes up.

Every random choice of a step is drawn from the seed and its number alone, so that a run that was killed and goes on
computes what it would have computed.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isotrace.base.errors import RunError
from isotrace.base.progress import Progress
from isotrace.base.settings import child_seed
from isotrace.base.work import Work
from isotrace.datasets.tasks import Example, batches
from isotrace.probing.states import BATCH_TOKENS
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.probe import pool
from isotrace.subjects.subject import Subject
from isotrace.training.checkpoint import load_checkpoint, save_checkpoint
from isotrace.transfer.adapting.head import Head, loss
from isotrace.transfer.adapting.settings import AdaptSettings
from isotrace.transfer.adapting.tasks import TaskTable

SAVE_SECONDS = 20.0
"""Between two states on disk, at least."""


@dataclass(frozen=True, eq=False)
class Trainee:
    """`subject`: a copy that is nobody else's; `trained`: its parameters by name that are trained, with the factor of
    the learning rate of each; `noisy`: modules that are in training mode while it learns, for their dropout."""

    subject: Subject
    trained: dict[str, tuple[nn.Parameter, float]]
    noisy: Sequence[nn.Module]


@dataclass(frozen=True)
class Point:
    """One look at the validation part: after `step` steps; `train` the mean loss of the steps since the last look."""

    step: int
    train: float
    valid: float


def train(
    trainee: Trainee, head: Head, table: TaskTable, spelled: Sequence[Sequence[Example]], settings: AdaptSettings,
    rate: float, *, name: str, work: Work | None, progress: Progress,
) -> tuple[Point, ...]:  # fmt: skip
    """Trains both in place and leaves the weights with the least validation loss. `spelled[i]`: the ways to write
    example i, the given one first. Raises RunError for a loss that is no number."""
    members = table.members("train")
    everything = {f"subject.{n}": p for n, (p, _) in trainee.trained.items()}
    everything |= {f"head.{n}": p for n, p in head.named_parameters()}
    optimizer = torch.optim.AdamW(_groups(trainee, head, rate, settings), betas=(0.9, 0.999), eps=1e-8)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, settings))
    path = None if work is None else work.path(f"{name}.pt")
    known = asdict(settings) | {"rate": rate}
    state: dict[str, Any] = {"step": 0, "best": np.inf, "since": 0, "points": [], "sum": 0.0}
    kept = _values(everything)
    if path is not None and (saved := load_checkpoint(path, known)) is not None:
        state, kept = saved["state"], saved["kept"]
        _restore(everything, saved["now"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
    per_epoch = -(-len(members) // settings.batch)
    saved_at = time.monotonic()
    for step in progress(range(state["step"], settings.steps), name):
        if state["since"] >= settings.patience:
            continue
        rows = _batch(members, step, per_epoch, settings)
        chosen = _spelling(spelled, rows, step // per_epoch, settings.seed)
        state["sum"] += _step(trainee, head, table, rows, chosen, everything, optimizer, schedule, settings, step)
        state["step"] = step + 1
        if (step + 1) % settings.every and step + 1 < settings.steps:
            continue
        valid = validation_loss(trainee.subject, head, table)
        if not np.isfinite([valid, state["sum"]]).all():
            raise RunError(f"the loss of {name} is no number after {step + 1} steps: give a smaller --learning-rate.")
        better = valid < state["best"]
        if better:
            kept = _values(everything)
        done = step + 1 - (state["points"][-1][0] if state["points"] else 0)
        state |= {"best": min(valid, state["best"]), "since": 0 if better else state["since"] + 1}
        state |= {"points": [*state["points"], [step + 1, state["sum"] / done, valid]], "sum": 0.0}
        last = step + 1 == settings.steps or state["since"] >= settings.patience
        if path is not None and (last or time.monotonic() - saved_at >= SAVE_SECONDS):
            parts = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            save_checkpoint(path, known, {"state": state, "kept": kept, "now": _values(everything), **parts})
            saved_at = time.monotonic()
    _restore(everything, kept)
    return tuple(Point(*point) for point in state["points"])


def _step(
    trainee: Trainee, head: Head, table: TaskTable, rows: np.ndarray, chosen: Sequence[Example],
    everything: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, schedule: Any, settings: AdaptSettings,
    step: int,
) -> float:  # fmt: skip
    """The loss of the batch before the step."""
    subject = trainee.subject
    order = sorted(range(len(rows)), key=lambda i: len(chosen[i].ids))
    ((_, batch),) = batches([chosen[i] for i in order], 2**62, subject)
    with torch.random.fork_rng(devices=[subject.device] if subject.device.type == "cuda" else []):
        torch.manual_seed(child_seed(settings.seed, step))
        for module in trainee.noisy:
            module.train()
        states = pool(subject, batch, subject.hidden(batch.ids, batch.mask), head.pool)
        for module in trainee.noisy:
            module.eval()
    found = _loss(head, table, rows[order], [chosen[i] for i in order], states)[0]
    optimizer.zero_grad(set_to_none=True)
    found.backward()
    nn.utils.clip_grad_norm_(everything.values(), settings.clip)
    optimizer.step()
    schedule.step()
    return float(found.detach())


def _loss(
    head: Head, table: TaskTable, members: np.ndarray, written: Sequence[Example], states: Tensor
) -> tuple[Tensor, int]:
    """(mean over the labels of the examples `members`, as `written`, how many those are)."""
    if table.by_token:
        states = torch.cat([states[i, list(example.places)] for i, example in enumerate(written)])
    y = torch.from_numpy(table.labels(members)).to(states)
    return loss(head(states), y, table.properties, head.scale), int(torch.isfinite(y).sum())


@torch.no_grad()
def validation_loss(subject: Subject, head: Head, table: TaskTable) -> float:
    """Mean over the labels of the part valid; NaN where it has none."""
    members = table.members("valid")
    members = members[np.argsort([len(table.examples[i].ids) for i in members], kind="stable")]
    total, count = 0.0, 0
    for places, batch in batches([table.examples[i] for i in members], BATCH_TOKENS, subject):
        with fast_kernels(subject):
            states = pool(subject, batch, subject.hidden(batch.ids, batch.mask), head.pool)
        rows = members[places]
        found, n = _loss(head, table, rows, [table.examples[i] for i in rows], states)
        total, count = total + float(found) * n, count + n
    return total / count if count else float("nan")


def _groups(trainee: Trainee, head: Head, rate: float, settings: AdaptSettings) -> list[dict[str, Any]]:
    """Matrices decay, biases and the weights of norms do not."""
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter, factor in (*trainee.trained.values(), *((p, 1.0) for p in head.parameters())):
        found.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": own, "lr": rate * factor, "weight_decay": settings.weight_decay if decays else 0.0}
        for (factor, decays), own in found.items()
    ]


def _factor(step: int, settings: AdaptSettings) -> float:
    """Of the learning rate at `step`, counted from 0: rises to 1 over the warm-up, then falls to 0 at the last."""
    rising = round(settings.warmup * settings.steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return max(0.0, (settings.steps - step) / max(1, settings.steps - rising))


def _batch(members: np.ndarray, step: int, per_epoch: int, settings: AdaptSettings) -> np.ndarray:
    """Examples of batch `step`: every pass has all of `members` once, in an order of its own."""
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng((settings.seed, 7, epoch)).permutation(members)
    return order[place * settings.batch : (place + 1) * settings.batch]


def _spelling(spelled: Sequence[Sequence[Example]], rows: np.ndarray, epoch: int, seed: int) -> list[Example]:
    """One of the ways to write each of `rows`, drawn anew in every pass."""
    draws = np.random.default_rng((seed, 8, epoch)).random(len(spelled))
    return [spelled[i][int(draws[i] * len(spelled[i]))] for i in rows]


def _values(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


@torch.no_grad()
def _restore(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
