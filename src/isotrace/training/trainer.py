"""One dictionary in training: weights, optimiser, counters, and the step that advances them."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from isotrace.base.errors import RunError
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.registry import ARCHITECTURES
from isotrace.training.config import TrainingConfig
from isotrace.training.losses import LossOutput, reconstruction
from isotrace.training.parallel import Parallel, split
from isotrace.training.world import World


@dataclass(frozen=True)
class Job:
    """A dictionary to train. Several jobs share one stream."""

    name: str
    config: DictionaryConfig
    training: TrainingConfig

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "dictionary": asdict(self.config), "training": asdict(self.training)}


@dataclass(frozen=True)
class Norms:
    """Constants of one hookpoint each: `mean [n, d]`, `scale [n]`, and whether an activation is massive: beyond 100
    times the median magnitude (of several processes, the mean of their medians)."""

    mean: Tensor
    scale: Tensor
    massive: list[bool]

    @classmethod
    def of(cls, activations: Tensor, world: World | None = None) -> "Norms":
        """activations `[n, tokens, d]`, together with those of the other processes of `world`."""
        world = world or World()
        count = sum(world.all(activations.shape[1]))
        mean = activations.sum(1)
        world.sum_(mean)
        mean /= count
        squares = (activations - mean[:, None]).square().sum((1, 2))
        world.sum_(squares)
        magnitude = activations.abs().flatten(1)
        largest, median = magnitude.amax(1), magnitude.median(1).values
        world.max_(largest)
        world.mean_(median)
        return cls(mean, (squares / (count * activations.shape[2])).sqrt(), (largest > 100 * median).tolist())

    def to(self, device: torch.device) -> "Norms":
        return replace(self, mean=self.mean.to(device), scale=self.scale.to(device))

    def at(self, places: list[int]) -> tuple[Tensor, Tensor]:
        return self.mean[places], self.scale[places]


class Trainer:
    """Trains `job` on activations of `hookpoints`, which hold all that the dictionary reads and writes."""

    def __init__(
        self,
        job: Job,
        hookpoints: tuple[str, ...],
        world: World,
        device: torch.device,
        parallel: Parallel = "data",
    ) -> None:
        self.job, self.world = job, world
        self.split = split(world, parallel, job.config)
        self.dictionary = self.split.build(job.config, job.training.seed).to(device)
        self.reads = [hookpoints.index(site) for site in job.config.reads]
        self.writes = [hookpoints.index(site) for site in job.config.writes]
        self.tokens, self.steps = 0, 0
        self.since = torch.zeros_like(self.dictionary.density, dtype=torch.int64)
        self.optimizer = self.new_optimizer(job.training.learning_rate)
        if job.training.batch_tokens % world.size:
            raise RunError(f"batch_tokens must be a multiple of the {world.size} processes.")
        self._started, self._counted = time.perf_counter(), 0

    def new_optimizer(self, rate: float) -> torch.optim.Adam:
        return torch.optim.Adam(self.dictionary.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)

    @property
    def done(self) -> bool:
        return self.tokens >= self.job.training.tokens

    def constants(self, norms: Norms) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(mean_in, scale_in, mean_out, scale_out); token normalisation leaves nothing to a constant."""
        (mean_in, scale_in), (mean_out, scale_out) = norms.at(self.reads), norms.at(self.writes)
        if self.job.config.token_normalization != "none":
            nothing = torch.zeros_like(mean_in), torch.ones_like(scale_in)
            return *nothing, *nothing
        return mean_in, scale_in, mean_out, scale_out

    def train_block(self, activations: Tensor, norms: Norms, on_step) -> None:
        """Use up a block `[n_hookpoints, tokens, d]`; a rest smaller than a batch is left."""
        size = self.job.training.batch_tokens // self.world.size
        mean_in, scale_in, mean_out, scale_out = self.constants(norms)
        for number in range(self.world.least(activations.shape[1] // size)):
            if self.done:  # past its end the schedule falls below zero
                break
            part = self.split.tokens(activations[:, number * size : (number + 1) * size])
            x = (part[self.reads] - mean_in[:, None]) / scale_in[:, None, None]
            y = (part[self.writes] - mean_out[:, None]) / scale_out[:, None, None]
            on_step(self.step(x, y))

    def step(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        """One step on normalised x, y `[n_layers, tokens, d]`; returns the record that callbacks see."""
        training = self.job.training
        progress = self.tokens / training.tokens
        dead = self.since >= training.dead_after
        first, second = y.mean(1), y.square().mean((1, 2))
        self.split.mean_(first, second)
        out = reconstruction(
            self.dictionary,
            x,
            y,
            training,
            dead,
            penalty=training.penalty * min(1.0, progress / training.penalty_warmup),
            var=second - first.square().mean(1),
            split=self.split,
        )
        # an input that is not finite activates nothing, and must not pass for a good step: 0 · NaN is NaN
        norm = self.update(out.total + 0 * x.sum(), training.learning_rate * training.rate(progress))
        fired = self.split.fired(out.fired)
        self.since = torch.where(fired, 0, self.since + training.batch_tokens)
        self.tokens, self.steps = self.tokens + training.batch_tokens, self.steps + 1
        return self.record(out, dead, norm)

    def update(self, loss: Tensor, rate: float) -> float:
        """Backward, clip, optimiser step at `rate`; the gradient's norm. Raises RunError for a loss or gradient that
        is not finite, before it reaches the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        value = loss.detach().clone()
        norm = self.split.reduce_(value, self.dictionary)
        if not (torch.isfinite(value) and torch.isfinite(norm)):
            raise RunError("the loss is not finite: lower the learning rate and resume from the last checkpoint.")
        limit = self.job.training.clip
        if limit is not None and float(norm) > limit:
            torch.nn.utils.clip_grads_with_norm_(self.dictionary.parameters(), limit, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return float(norm)

    def record(self, out: LossOutput, dead: Tensor, norm: float) -> dict[str, Any]:
        self._counted += self.job.training.batch_tokens
        speed = self._counted / (time.perf_counter() - self._started)
        left = (self.job.training.tokens - self.tokens) / speed
        numbers = torch.stack([out.total.detach(), out.l0, dead.to(out.l0.dtype).mean(), *out.parts.values(), *out.fve])
        self.world.mean_(numbers)
        loss, l0, share_dead, *rest = numbers.tolist()
        return {
            "job": self.job.name,
            "phase": "reconstruct",
            "step": self.steps,
            "tokens": self.tokens,
            "loss": loss,
            **dict(zip(out.parts, rest, strict=False)),
            "fve": rest[len(out.parts) :],
            "l0": l0,
            "dead": share_dead,
            "gradient_norm": norm,
            "tokens_per_s": speed,
            "eta_s": left if math.isfinite(left) else None,
        }

    def finish(self, norms: Norms) -> None:
        """After the last batch: from raw inputs to raw outputs."""
        self.dictionary.fold(*self.constants(norms))

    def state(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "steps": self.steps,
            "since": self.since,
            "weights": self.dictionary.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.tokens, self.steps, self.since = state["tokens"], state["steps"], state["since"].to(self.since.device)
        self.dictionary.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])


class Fitter(Trainer):
    """In place of steps the tokens of all batches are held until there are enough, and fitted together."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        if self.world.size > 1:
            raise RunError(f"a {self.job.config.architecture} is fitted in one process: start it without others.")
        self.held: list[Tensor] = []

    def train_block(self, activations: Tensor, norms: Norms, on_step) -> None:
        left = self.job.training.tokens - self.tokens
        if left <= 0:
            return
        part = activations[self.reads, :left].clone()
        self.held.append(part)
        self.tokens += part.shape[1]
        if not self.done:
            return
        tokens = torch.cat(self.held, 1)
        self.dictionary.fit(tokens, self.job.training.seed)
        self.held, self.steps, self._counted = [], 1, self.tokens
        on_step(self.fitted(tokens))

    @torch.no_grad()
    def fitted(self, tokens: Tensor) -> dict[str, Any]:
        """The record of `step`, of tokens `[n_layers, tokens, d]` that were fitted."""
        errors, active = [], []
        for layer, x in enumerate(tokens):
            rows = x.split(self.job.training.batch_tokens)
            dense = [self.dictionary.encode(layer, row).dense(self.job.config.n_features) for row in rows]
            parts = [self.dictionary.decode(layer, {layer: a}, row) for a, row in zip(dense, rows, strict=True)]
            errors.append((x - torch.cat(parts)).square().mean() / (x - x.mean(0)).square().mean())
            active.append(torch.stack([(a > 0).sum(0) for a in dense]).sum(0))
        loss, fired = torch.stack(errors), torch.stack(active)
        out = LossOutput(loss.sum(), {}, 1 - loss, fired.sum() / (tokens.shape[1] * len(tokens)), fired > 0)
        return self.record(out, fired == 0, 0.0)

    def finish(self, norms: Norms) -> None:
        """Raw inputs were fitted."""

    def state(self) -> dict[str, Any]:
        return super().state() | {"held": self.held}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.held = [part.to(self.since.device) for part in state["held"]]


def trainer_of(job: Job, *given: Any) -> Trainer:
    return (Fitter if ARCHITECTURES[job.config.architecture].fitted else Trainer)(job, *given)


def resolved(training: TrainingConfig, device: torch.device) -> TrainingConfig:
    """`dtype: auto` becomes bfloat16 where `device` has instructions for its matrix products, else float32: the same
    on every run of the same machine."""
    if training.dtype != "auto":
        return training
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return replace(training, dtype="bfloat16" if fast else "float32")


def as_begun(jobs: Sequence[Job], begun: dict[str, Any] | None, device: torch.device) -> list[Job]:
    """`jobs` with every `dtype: auto` settled: as in `begun`, the settings of the run's checkpoint, or anew."""
    before = {} if begun is None else {job["name"]: job["training"]["dtype"] for job in begun["jobs"]}
    settled = []
    for job in jobs:
        training = job.training
        if training.dtype == "auto" and job.name in before:
            training = replace(training, dtype=before[job.name])
        settled.append(replace(job, training=resolved(training, device)))
    return settled
