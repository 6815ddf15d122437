"""Activations of a subject into a store, to train from many times."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from isotrace.verbs.request import (
    COMMAS,
    Answer,
    Column,
    Data,
    Floats,
    InFolder,
    OnSubject,
    Progress,
    Seeded,
    look_at,
    verb,
)
from isotrace.verbs.spreading import OnWorkers, helpers_of

if TYPE_CHECKING:
    import polars as pl

    from isotrace.activations.store import Part
    from isotrace.activations.stream import SubjectStream


class HarvestRequest(OnSubject, InFolder, Seeded, OnWorkers):
    way_on = "the same command goes on from there"
    data: Data
    tokens: int = Field(ge=1)
    """Tokens to write; sequences at pooled hookpoints."""
    out: Path
    """Folder of the store; a harvest that was stopped there goes on."""
    hookpoints: Annotated[tuple[str, ...], COMMAS] = ("mlp_in", "mlp_out")
    """Kinds, as mlp_in,mlp_out, or pooled or latent, with a row per sequence: of --layers."""
    layers: Annotated[tuple[int, ...] | None, COMMAS] = None
    """Layers, as 0,2,4; usual: all, of pooled kinds the last."""
    dtype: Floats = "float32"
    """Of the activations written."""
    shard_tokens: int = Field(default=100_000, ge=1)
    """Tokens of a shard."""
    mask_rate: float | None = Field(default=None, ge=0, le=0.99)
    """Share masked in every second batch; usual: 0.15, or 0 for a subject that fills no masks."""
    column: Column = None

    def look(self) -> None:
        super().look()
        look_at(self.data, self.column)


@verb(HarvestRequest)
def harvest(request: HarvestRequest, progress: Progress) -> Answer:
    """Harvest activations of a subject into safetensors shards with checksums; resumable."""
    from isotrace.activations.store import write_store
    from isotrace.base.files import write_whole
    from isotrace.base.runs import is_run, remove_run, replaceable
    from isotrace.subjects.heads.pooled import is_pooled

    if is_run(request.out):
        replaceable(request.out, request.command, request.overwrite)
        remove_run(request.out)
    stream, rejects = stream_of(request)
    shards = iter(progress(range(-(-request.tokens // request.shard_tokens)), "harvesting"))
    manifest = write_store(
        stream, request.out, tokens=request.tokens, dtype=request.dtype, shard_tokens=request.shard_tokens,
        overwrite=request.overwrite, progress=lambda *_: next(shards, None),
        helpers=helpers_of(request, harvesting, request, progress),
    )  # fmt: skip
    write_whole(request.out / "rejects.parquet", rejects.write_parquet)
    list(shards)  # of a harvest that went on, the shards it found
    summary = {"folder": str(request.out), "tokens": manifest.written, "shards": len(manifest.shards)}
    summary["rows"] = "sequences" if is_pooled(stream.hookpoints) else "tokens"
    return Answer(summary | {"hookpoints": [*stream.hookpoints], "rejects": rejects.to_dicts()})


def stream_of(request: HarvestRequest) -> "tuple[SubjectStream, pl.DataFrame]":
    """What is harvested, and the rows that cannot be. Raises as the readers do."""
    from isotrace.activations.stream import SubjectStream
    from isotrace.subjects.heads.pooled import usual_layers
    from isotrace.training.config import StreamConfig
    from isotrace.verbs.corpus import read_corpus
    from isotrace.verbs.loading import subject_of

    subject = subject_of(request)
    corpus, rejects = read_corpus(subject, request.data, request.column)
    layers = usual_layers(subject, request.hookpoints) if request.layers is None else request.layers
    names = [f"layers.{layer}.{kind}" for kind in request.hookpoints for layer in layers]
    usual = StreamConfig()
    stream = SubjectStream(
        subject, corpus, names, block_tokens=min(usual.block_tokens, request.shard_tokens, request.tokens),
        batch_tokens=min(usual.harvest_tokens, request.tokens), mask_rate=request.mask_rate, seed=request.seed,
        special_tokens=usual.special_tokens,
    )  # fmt: skip
    return stream, rejects


def harvesting(request: HarvestRequest) -> "Callable[[Part], None]":
    """For a worker: what writes one shard."""
    from isotrace.activations.store import write_shard

    stream, _ = stream_of(request)
    return lambda part: write_shard(stream, request.out, part, request.dtype)
