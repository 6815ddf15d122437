"""What every saved settings class has in common, and what is read from text everywhere alike."""

import operator
import os
import re
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from isotrace.base.errors import InputError

STRICT = ConfigDict(extra="forbid")
LARGEST_SEED = 2**63 - 1
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
"""Of every random choice: what NumPy's generators and those of torch take alike."""


def checked_seed(seed: Any) -> int:
    """Raises InputError for what is no `Seed`."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number <= LARGEST_SEED:
        raise InputError(f"the seed {seed!r} cannot be used: give a whole number from 0 to {LARGEST_SEED}.")
    return number


def child_seed(seed: int, number: int) -> int:
    """The seed of choice number `number` among those that derive from `seed`: a `Seed` too."""
    return (seed * 1_000_003 + number) & LARGEST_SEED


def whole_number(text: str) -> int | None:
    """The number that `text` writes in ASCII digits, perhaps with a minus. None for all else, also for `²`, which
    `str.isdigit` takes and `int` does not, and for `1_0` and digits of other scripts, where it is the other way round.
    """
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def expanded(place: str) -> str:
    """`place` with a leading `~` replaced as a shell does it; unchanged where there is no such home."""
    return os.path.expanduser(place)
