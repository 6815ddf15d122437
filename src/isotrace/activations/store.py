"""Activations on disk: written once from a stream, read back as a stream, in bounded memory both times."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from isotrace.activations.manifest import (
    MANIFEST,
    Dtype,
    Manifest,
    Origin,
    Shard,
    read_manifest,
    write_manifest,
)
from isotrace.activations.stream import Block, SubjectStream
from isotrace.base.errors import RunError
from isotrace.base.files import LOCK, locked, write_whole
from isotrace.base.identity import identity, sha256_file
from isotrace.base.settings import child_seed
from isotrace.engine.spread import Helpers

ROWS = 16_384  # rows of a shard looked at together when it is checked


@dataclasses.dataclass(frozen=True)
class Part:
    """A shard that is to be written: its blocks are those from position `start` on, `tokens` tokens together."""

    number: int
    start: int
    tokens: int
    position: int


def write_store(
    stream: SubjectStream,
    folder: str | Path,
    *,
    tokens: int,
    dtype: Dtype,
    shard_tokens: int,
    progress: Callable[[int, int], None],
    overwrite: bool = False,
    helpers: Helpers | None = None,
) -> Manifest:
    """Write `tokens` tokens of `stream` to `folder`, in shards of whole blocks with at least `shard_tokens` each.

    Run again after a kill or a full disk, it goes on behind the last complete shard and ends with the same files.
    Memory: two shards. `progress(written, tokens)` is called after every shard. A store with other settings is replaced
    with `overwrite`, or if it has no shard yet. `helpers`: others who write shards, see `write_shard`.

    Raises RunError when `folder` holds anything else or is in use, when a value is not finite in `dtype`, or when the
    disk refuses; shards written before stay.
    """
    folder = Path(folder)
    with locked(folder):
        manifest = _opened(stream, folder, tokens, dtype, shard_tokens, overwrite)
        if helpers is not None:
            left = parts(stream, manifest)
            helpers.do([one for one in left if not _stands(folder, one, manifest)], "harvesting")
        return _written(stream, folder, manifest, progress)


def parts(stream: SubjectStream, manifest: Manifest) -> Iterator[Part]:
    """The shards behind those that the manifest lists."""
    shards = manifest.shards
    number, written, position = len(shards), manifest.written, shards[-1].position if shards else 0
    layout = stream.layout(position)
    while written < manifest.tokens:
        start, count, left = position, 0, manifest.tokens - written
        while count < min(manifest.shard_tokens, left):
            position, more = next(layout)
            count += more
        yield Part(number, start, min(count, left), position)
        number, written = number + 1, written + min(count, left)


def write_shard(stream: SubjectStream, folder: Path, part: Part, dtype: Dtype) -> None:
    """Raises RunError as `write_store`."""
    _write(stream, folder, part.number, stream.blocks(part.start), part.tokens, part.tokens, dtype)


def _written(stream: SubjectStream, folder: Path, manifest: Manifest, progress: Callable[[int, int], None]) -> Manifest:
    shards, blocks = list(manifest.shards), None
    while (written := sum(shard.tokens for shard in shards)) < manifest.tokens:
        path = folder / _shard(len(shards))
        there = next(parts(stream, manifest)) if path.is_file() else None
        if there is not None and _stands(folder, there, manifest):
            count, position, blocks = there.tokens, there.position, None
        else:
            blocks = stream.blocks(shards[-1].position if shards else 0) if blocks is None else blocks
            left = manifest.tokens - written
            wanted = min(manifest.shard_tokens, left)
            count, position = _write(stream, folder, len(shards), blocks, wanted, left, manifest.dtype)
        shards.append(Shard(path.name, count, sha256_file(path), position))
        manifest = dataclasses.replace(manifest, shards=tuple(shards))
        write_manifest(folder, manifest)
        progress(written + count, manifest.tokens)
    return manifest


def _write(
    stream: SubjectStream, folder: Path, number: int, blocks: Iterator[Block], wanted: int, most: int, dtype: Dtype
) -> tuple[int, int]:
    """(tokens, position behind them) of a shard of whole blocks, at least `wanted` tokens and no more than `most`."""
    gathered, count, position = [], 0, 0
    while count < wanted:
        block = next(blocks)
        gathered.append(block.activations.cpu().to(getattr(torch, dtype)))
        count, position = count + gathered[-1].shape[1], block.position
    count = min(count, most)
    tensors = {
        name: torch.cat([part[i] for part in gathered])[:count].contiguous() for i, name in enumerate(stream.hookpoints)
    }
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise RunError(f"{name} holds values that are not finite in {dtype}: use float32, or mend the subject.")
    write_whole(folder / _shard(number), lambda file: save_file(tensors, file.name))
    return count, position


def _stands(folder: Path, part: Part, manifest: Manifest) -> bool:
    """Whether its file was written, by another process or before the manifest knew: files are whole or absent, and
    those of other settings are removed before the manifest says these."""
    try:
        with safe_open(folder / _shard(part.number), "pt") as file:
            return all(file.get_slice(name).get_shape() == [part.tokens, manifest.d] for name in manifest.hookpoints)
    except (OSError, SafetensorError):
        return False


def _shard(number: int) -> str:
    return f"shard-{number:05}.safetensors"


def _opened(
    stream: SubjectStream, folder: Path, tokens: int, dtype: Dtype, shard_tokens: int, overwrite: bool
) -> Manifest:
    """The manifest in `folder` if it was begun with these settings, else a new one in a folder without other files."""
    origin = Origin(stream.subject.source, identity(stream.subject))
    new = Manifest(
        "isotrace-activations", 2, stream.hookpoints, stream.d, dtype, origin, stream.describe(),
        tokens, shard_tokens, (),
    )  # fmt: skip
    if tokens < 1 or shard_tokens < 1:
        raise RunError("a store and its shards need at least one token: raise tokens and shard_tokens.")
    if (folder / MANIFEST).exists():
        old = read_manifest(folder)
        if dataclasses.replace(old, shards=()) == new:
            return old
        if old.shards and not overwrite:
            raise RunError(
                f"{folder} holds a store made with other settings: use them again, give --overwrite or another folder."
            )
        for number in range(-(-old.tokens // old.shard_tokens)):  # some perhaps written before the manifest knew
            (folder / _shard(number)).unlink(missing_ok=True)
    elif any(file.name != LOCK for file in folder.iterdir()):
        raise RunError(f"{folder} holds files but no activation store: choose another folder.")
    write_manifest(folder, new)
    return new


class StoreStream:
    """A store as an endless stream of blocks of exactly `block_tokens` tokens, float32. Positions count blocks.

    An epoch reads the shards one after the other, in an order of its own, and a block may run from one epoch into the
    next. Blocks are shuffled by their number. Every shard's checksum, shapes and finiteness are checked when it is
    first used.

    hookpoints: those to read, in this order; None is all. bad_shards: `error` raises RunError naming the file and
    what is wrong with it; `skip` calls `warn(reason)`, lists the file in `skipped` and goes on without its tokens,
    so that the blocks it would have filled are shorter. rank, world_size: see `SubjectStream`.

    Raises RunError for a folder that is no complete store, or lacks a hookpoint.
    """

    def __init__(
        self,
        folder: str | Path,
        hookpoints: Sequence[str] | None = None,
        *,
        block_tokens: int,
        seed: int,
        bad_shards: Literal["error", "skip"],
        warn: Callable[[str], None],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.folder = Path(folder)
        self.manifest = manifest = read_manifest(self.folder)
        if manifest.written < manifest.tokens or not manifest.shards:
            raise RunError(
                f"{folder} holds {manifest.written} of {manifest.tokens} tokens: run its harvest again to finish it."
            )
        self.hookpoints = manifest.hookpoints if hookpoints is None else tuple(hookpoints)
        if missing := set(self.hookpoints) - set(manifest.hookpoints):
            raise RunError(f"{folder} has no {min(missing)!r}: it holds {', '.join(manifest.hookpoints)}.")
        if block_tokens < 1 or not 0 <= rank < world_size:
            raise RunError("a block needs at least one token and a rank lies below world_size: change them.")
        self.d, self.block_tokens, self.seed = manifest.d, block_tokens, seed
        self.bad_shards, self.warn, self.rank, self.world_size = bad_shards, warn, rank, world_size
        self.skipped: list[str] = []
        self._checked: set[str] = set()

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "store",
            "manifest_sha256": hashlib.sha256((self.folder / MANIFEST).read_bytes()).hexdigest(),
            "hookpoints": list(self.hookpoints),
            "block_tokens": self.block_tokens,
            "seed": self.seed,
            "bad_shards": self.bad_shards,
            "rank": self.rank,
            "world_size": self.world_size,
        }

    def blocks(self, start: int = 0) -> Iterator[Block]:
        position = start
        while True:
            overall = position * self.world_size + self.rank
            pieces = [piece for piece in self._pieces(overall) if self._usable(piece[0])]
            position += 1
            if pieces:
                yield Block(position, self._read(pieces, overall))
            elif len(self.skipped) == len(self.manifest.shards):
                raise RunError(f"every shard of {self.folder} is bad: harvest it again.")

    def _pieces(self, number: int) -> Iterator[tuple[Shard, int, int]]:
        """(shard, first row, end row) of block `number` in the endless row of epochs."""
        epoch, first = divmod(number * self.block_tokens, self.manifest.tokens)
        left = self.block_tokens
        while left:
            for index in np.random.default_rng((self.seed, epoch)).permutation(len(self.manifest.shards)):
                shard = self.manifest.shards[index]
                end = min(shard.tokens, first + left)
                if first < end:
                    yield shard, first, end
                    left -= end - first
                first = max(0, first - shard.tokens)
            epoch += 1

    def _read(self, pieces: list[tuple[Shard, int, int]], number: int) -> Tensor:
        count = sum(end - first for _, first, end in pieces)
        places = torch.randperm(count, generator=torch.Generator().manual_seed(child_seed(self.seed, number)))
        block = torch.empty(len(self.hookpoints), count, self.d)
        for shard, first, end in pieces:
            there, places = places[: end - first], places[end - first :]
            with safe_open(self.folder / shard.file, "pt") as file:
                for i, name in enumerate(self.hookpoints):
                    block[i].index_copy_(0, there, file.get_slice(name)[first:end].float())
        return block

    def _usable(self, shard: Shard) -> bool:
        if shard.file in self.skipped:
            return False
        if shard.file not in self._checked:
            if reason := self._fault(shard):
                message = f"{self.folder / shard.file} {reason}: harvest the store again, or skip bad shards."
                if self.bad_shards == "error":
                    raise RunError(message)
                self.skipped.append(shard.file)
                self.warn(message)
                return False
            self._checked.add(shard.file)
        return True

    def _fault(self, shard: Shard) -> str | None:
        """What is wrong with the file of `shard`, None if nothing is."""
        path, shape = self.folder / shard.file, [shard.tokens, self.d]
        try:
            if sha256_file(path) != shard.sha256:
                return "is damaged or cut short (its checksum differs)"
            with safe_open(path, "pt") as file:
                slices = {name: file.get_slice(name) for name in self.manifest.hookpoints}
                if any(found.get_shape() != shape for found in slices.values()):
                    return f"holds tensors of another shape than {shape}"
                for name, found in slices.items():
                    for row in range(0, shard.tokens, ROWS):
                        if not bool(torch.isfinite(found[row : row + ROWS]).all()):
                            return f"holds NaN or infinity at {name}"
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        except SafetensorError as error:
            return f"is no shard of this store ({error})"
        return None
