"""How a subject is adapted: what all methods have in common."""

from dataclasses import dataclass

from isotrace.base.errors import InputError
from isotrace.base.settings import checked_seed
from isotrace.subjects.probe import Pool

SMALL, LARGE = 5_000_000, 100_000_000
"""Weights below which all of a subject is trained with FULL_RATES[0], above which adapters with LORA_RATES[1]."""
FULL_RATES, LORA_RATES = (3e-4, 3e-5), (1e-3, 2e-4)


@dataclass(frozen=True)
class AdaptSettings:
    """`pool`: of sequences, see `subjects.probe.pool`; labels of atoms or residues are read token by token.

    Training: at most `steps` batches of `batch` sequences, AdamW with `learning_rate` (None = by method and size) that
    rises over the first share `warmup` of the steps and falls to 0 at the last, `weight_decay` of matrices, gradients
    clipped to the norm `clip`. The validation loss is taken every `every` steps; after `patience` of them without a
    new best one training stops, and the best weights stand. `layer_decay`: factor of the rate from each layer to the
    one below. `rank`, `alpha`, `lora_dropout`: of adapters. `spellings`: other ways to write each sequence that is
    learned from, of which every pass takes one at random; 0 = as given.
    """

    pool: Pool = "mean"
    steps: int = 600
    batch: int = 32
    learning_rate: float | None = None
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    every: int = 20
    patience: int = 10
    layer_decay: float = 1.0
    rank: int = 8
    alpha: float = 16.0
    lora_dropout: float = 0.0
    spellings: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        checked_seed(self.seed)
        for name in ("steps", "batch", "every", "patience", "rank"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: give 1 or more.")
        if self.spellings < 0 or not 0 <= self.warmup < 1 or not 0 < self.layer_decay <= 1:
            raise InputError("spellings are 0 or more, warmup is at least 0 and below 1, layer_decay in (0, 1].")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InputError(f"learning_rate is {self.learning_rate}: give a positive number.")
