"""What every saved settings class has in common."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid")
