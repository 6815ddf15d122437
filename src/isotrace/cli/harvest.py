"""isotrace harvest: write activations to a sharded store, to train from many times."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    subject: Annotated[str, typer.Argument(help="bundled:molm, hf:org/name or a folder.")],
    data: Annotated[str, typer.Option(help="File of sequences (CSV, TSV, Parquet, .smi, FASTA, …).")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to write.")],
    out: Annotated[Path, typer.Option(help="Folder of the store; a harvest that was stopped there goes on.")],
    hookpoints: Annotated[
        str, typer.Option(help="Kinds, as mlp_in,mlp_out: of all layers, or of --layers.")
    ] = "mlp_in,mlp_out",
    layers: Annotated[str | None, typer.Option(help="Layers, as 0,2,4; usual: all.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    shard_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a shard.")] = 100_000,
    mask_rate: Annotated[float, typer.Option(min=0, max=0.99, help="Share masked in every second batch.")] = 0.15,
    seed: Annotated[int, typer.Option(min=0, help="Of the order and the masks.")] = 0,
    domain: Annotated[str | None, typer.Option(help="What tokens stand for, where the subject does not say.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of the file that holds the sequences.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Harvest activations of a subject into safetensors shards with checksums; resumable."""
    import sys

    from rich.console import Console
    from rich.progress import Progress

    from isotrace.activations.store import write_store
    from isotrace.activations.stream import SubjectStream
    from isotrace.base.errors import InputError
    from isotrace.base.runs import dumps
    from isotrace.cli.train import numbers
    from isotrace.subjects.subject import load_subject
    from isotrace.training.config import StreamConfig
    from isotrace.verbs.corpus import read_corpus

    if dtype not in ("float32", "float16", "bfloat16"):
        raise InputError(f"--dtype {dtype}: use float32, float16 or bfloat16.")
    loaded = load_subject(subject, domain=domain)
    corpus, rejects = read_corpus(loaded, data, column)
    wanted = list(range(loaded.n_layers)) if layers is None else numbers("--layers", layers)
    names = [f"layers.{layer}.{kind.strip()}" for kind in hookpoints.split(",") for layer in wanted]
    usual = StreamConfig()
    stream = SubjectStream(
        loaded, corpus, names, block_tokens=min(usual.block_tokens, shard_tokens, tokens),
        batch_tokens=min(usual.harvest_tokens, tokens), mask_rate=mask_rate, seed=seed,
        special_tokens=usual.special_tokens,
    )  # fmt: skip
    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("harvesting", total=tokens)
        manifest = write_store(
            stream,
            out,
            tokens=tokens,
            dtype=dtype,  # pyright: ignore[reportArgumentType]
            shard_tokens=shard_tokens,
            progress=lambda done, _: bar.update(task, completed=done),
        )
    summary = {"folder": str(out), "tokens": manifest.written, "shards": len(manifest.shards), "hookpoints": names}
    summary |= {"rejects": rejects.to_dicts()}
    if json:
        typer.echo(dumps(summary))
        return
    typer.echo(f"{out}: {manifest.written:,} tokens of {len(names)} hookpoints in {len(manifest.shards)} shards")
    for index, text, reason in rejects.rows():
        typer.echo(f"  rejected row {index}: {text!r}: {reason}")
