"""What every saved settings class has in common."""

from typing import Annotated

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid")
Seed = Annotated[int, Field(ge=0)]
"""Of every random choice: NumPy's generators take no negative one."""
