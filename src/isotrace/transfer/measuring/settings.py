"""How checkpoints are measured."""

from dataclasses import dataclass, field
from typing import Any

from isotrace.base.errors import InputError
from isotrace.base.settings import checked_seed, child_seed
from isotrace.transfer.adapting.settings import AdaptSettings
from isotrace.transfer.predictors.predictor import PREDICTORS


@dataclass(frozen=True)
class MeasureSettings:
    """`n_train`: labels that are learned from; `n_test`: at most so many that are judged on."""

    method: str = "probe"
    n_train: int = 300
    n_test: int = 500
    n_seeds: int = 3
    n_bootstrap: int = 200
    seed: int = 0
    predictors: tuple[str, ...] = ()
    adapting: AdaptSettings = field(default_factory=AdaptSettings)

    def __post_init__(self) -> None:
        checked_seed(self.seed)
        for name in self.predictors:
            PREDICTORS[name]
        if min(self.n_train, self.n_test) < 20 or self.n_seeds < 1:
            raise InputError("a measurement needs 20 labels to learn from and 20 to judge on, and a seed, or more.")

    @property
    def identity(self) -> list[Any]:
        """What outcomes depend on."""
        return [self.method, self.n_train, self.n_test, self.n_bootstrap, self.seed, self.adapting]

    @property
    def seeds(self) -> list[int]:
        return [child_seed(self.seed, i) if i else self.seed for i in range(self.n_seeds)]
