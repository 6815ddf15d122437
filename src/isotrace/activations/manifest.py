"""What an activation store says of itself."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from isotrace.base.errors import RunError
from isotrace.base.files import write_whole
from isotrace.base.runs import dumps
from isotrace.base.settings import STRICT

MANIFEST = "manifest.json"
FORMAT, FORMAT_VERSION = "isotrace-activations", 2
Dtype = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True, config=STRICT)
class Origin:
    """The subject whose activations these are, by name and identity."""

    source: str
    identity: str


@dataclass(frozen=True, config=STRICT)
class Shard:
    """A safetensors file with one tensor `[tokens, d]` per hookpoint. `position` is where its stream went on."""

    file: str
    tokens: int
    sha256: str
    position: int


@dataclass(frozen=True, config=STRICT)
class Manifest:
    """`manifest.json` of a store. `stream` is what `describe()` of the stream said; `tokens` and `shard_tokens` are
    what was asked for. The store is complete when its shards hold `tokens` tokens."""

    format: Literal["isotrace-activations"]
    format_version: Literal[2]
    hookpoints: tuple[str, ...]
    d: int
    dtype: Dtype
    subject: Origin
    stream: dict[str, Any]
    tokens: int
    shard_tokens: int
    shards: tuple[Shard, ...]

    @property
    def written(self) -> int:
        return sum(shard.tokens for shard in self.shards)


def read_manifest(folder: Path) -> Manifest:
    """Raises RunError when `folder` holds no store, or one of another version or with unknown keys."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
        return TypeAdapter(Manifest).validate_python(found)
    except OSError as error:
        raise RunError(f"{folder} is no activation store ({MANIFEST}: {error.strerror}): harvest one.") from None
    except ValueError as error:  # ValidationError, JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = "; ".join(str(error).split("\n")[1:3]).strip() or str(error)
        raise RunError(
            f"{folder / MANIFEST} is not {FORMAT} version {FORMAT_VERSION} ({reason}): harvest it again."
        ) from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Raises RunError if the disk refuses."""
    write_whole(folder / MANIFEST, (dumps(manifest, indent=2) + "\n").encode())
