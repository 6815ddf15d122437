"""What a trial is asked."""

from dataclasses import dataclass, field
from typing import Any, Literal

from isotrace.base.errors import InputError
from isotrace.base.settings import checked_seed
from isotrace.interventions.where import Which

Confounds = Literal["match", "residual", "free"]
PLACES = 12
"""Of a sequence, that a dose is measured at."""
TwinsAt = Literal["every", "largest"]


@dataclass(frozen=True)
class TrialSettings:
    """`doses`: nats. `n_designs` of each of at most `n_starts` starts that are told, and of `n_development` others,
    which say what is safe: of fewer than 20 designs a single degenerate one ends the window. `n_twins`: edits of every
    null, at `every` dose inside the safe window or at its `largest` alone. `hold`: confounds that are matched or
    held fixed, none: the length and the kinds of tokens. `where`: tokens that are edited, None: of a masked subject the
    masked ones, of another those that the method names. `n_places`: tokens of each calibration sequence that a dose is
    measured at. `more`: settings of the method, by name."""

    method: str = "difference_in_means"
    layers: tuple[int, ...] = ()
    confounds: Confounds = "residual"
    doses: tuple[float, ...] = (0.025, 0.05, 0.1, 0.25, 0.5)
    n_designs: int = 4
    n_starts: int = 12
    n_development: int = 24
    n_twins: int = 20
    generator: str | None = None
    seed: int = 0
    more: dict[str, Any] = field(default_factory=dict)
    twins_at: TwinsAt = "largest"
    hold: tuple[str, ...] = ()
    where: Which | None = None
    n_places: int = PLACES

    def __post_init__(self) -> None:
        checked_seed(self.seed)
        if not self.doses or not all(dose > 0 for dose in self.doses):
            raise InputError("doses are numbers of nats above 0: give one at least.")
