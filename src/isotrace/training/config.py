"""How a dictionary is trained; saved beside it as a record."""

from typing import Literal

from pydantic.dataclasses import dataclass

from isotrace.dictionaries.config import STRICT


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """`tokens` and `finetune_tokens` count real tokens of the stream.

    A feature is dead when it was active on none of the last `dead_after` tokens. `mask_rate` applies to every
    second batch. `dtype` is that of the matrix products; weights and optimiser stay float32.
    """

    tokens: int = 8_000_000
    batch_tokens: int = 2_048
    block_tokens: int = 32_768
    learning_rate: float = 8e-4
    warmup: float = 0.05
    auxiliary: float = 1 / 32
    auxiliary_k: int = 64
    dead_after: int = 200_000
    mask_rate: float = 0.15
    finetune_tokens: int = 0
    finetune_learning_rate: float = 1e-4
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = 0
