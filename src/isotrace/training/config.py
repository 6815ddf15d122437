"""How a dictionary is trained, and from which stream; saved beside it as a record."""

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from isotrace.base.settings import STRICT, Seed
from isotrace.dictionaries.sparsity.rule import RuleSettings


@dataclass(frozen=True, config=STRICT)
class StreamConfig:
    """Where the tokens come from. `block_tokens` is the size of the shuffle buffer, `harvest_tokens` that of a pass
    of the subject, `mask_rate` the share of tokens masked in every second batch (None: see `mask_rate_of`),
    `special_tokens` whether begin and end tokens are kept."""

    block_tokens: PositiveInt = 32_768
    harvest_tokens: PositiveInt = 2_048
    mask_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    special_tokens: bool = True
    seed: Seed = 0


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """`tokens` and `finetune_tokens` count real tokens of the stream; `batch_tokens` is a step's, over all processes.

    The learning rate warms up over the share `warmup` of the run and decays linearly to the share `final_rate` of
    its peak. `clip` bounds the gradient's norm, null leaves it alone. A feature is dead when it was active on none
    of the last `dead_after` tokens; the `auxiliary_k` largest of the dead ones reconstruct the residual, weighted by
    `auxiliary`. `penalty` is the weight of the rule's sparsity penalty, reached after the share `penalty_warmup`
    of the run; `bandwidth` and `tanh_scale` are those of jumprelu. `dtype` is that of the matrix products ("auto":
    bfloat16 where the device has instructions for them, else float32, which is then written down); weights and
    optimiser stay float32. Fine-tuning trains the dictionary inside the free-running subject.
    """

    tokens: PositiveInt = 8_000_000
    batch_tokens: PositiveInt = 2_048
    learning_rate: PositiveFloat = 8e-4
    warmup: Annotated[float, Field(gt=0, le=1)] = 0.05
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.05
    clip: PositiveFloat | None = 1.0
    auxiliary: NonNegativeFloat = 1 / 32
    auxiliary_k: PositiveInt = 64
    dead_after: PositiveInt = 200_000
    penalty: NonNegativeFloat = 0.0
    penalty_warmup: Annotated[float, Field(gt=0, le=1)] = 0.1
    bandwidth: PositiveFloat = 0.5
    tanh_scale: PositiveFloat = 4.0
    finetune_tokens: NonNegativeInt = 0
    finetune_learning_rate: PositiveFloat = 1e-4
    finetune_batch_tokens: PositiveInt = 2_048
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    seed: Seed = 0

    def rate(self, progress: float) -> float:
        """Share of the peak learning rate at `progress` in 0…1: linear up, linear down."""
        if progress < self.warmup:
            return max(progress, 1e-4) / self.warmup
        return 1 - (1 - self.final_rate) * (progress - self.warmup) / max(1 - self.warmup, 1e-9)

    def rule_settings(self, keep_h: bool) -> RuleSettings:
        return RuleSettings(getattr(torch, self.dtype), keep_h, self.bandwidth, self.tanh_scale)
