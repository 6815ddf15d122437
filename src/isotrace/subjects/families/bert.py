"""BERT: post-norm blocks, learned positions. Token types are all 0, a constant."""

from typing import Any

from isotrace.subjects.families.family import Family, HeadPaths, Stack


def encoder_stack(base: str) -> Stack:
    """The blocks of BERT, which RoBERTa and DeBERTa name alike."""
    return Stack(
        layers=f"{base}.encoder.layer",
        attention=("attention.self",),
        attn_out="attention.output.dense",
        mlp_in="intermediate.dense",
        mlp_out="output.dense",
        norms=("attention.output.LayerNorm", "output.LayerNorm"),
    )


def only_encoders(config: Any, has_head: bool) -> str | None:
    if getattr(config, "is_decoder", False):
        return "it is used as a decoder (is_decoder)"
    if getattr(config, "chunk_size_feed_forward", 0):
        return "its MLPs run in chunks (chunk_size_feed_forward): set that to 0"
    # transformers 5 computes these models with absolute positions and ignores their relative ones
    kind = getattr(config, "position_embedding_type", None)
    return None if kind in (None, "absolute") else f"transformers no longer computes {kind} position embeddings"


BERT = Family(
    model_type="bert",
    base="bert",
    objective="masked",
    words=("bert.embeddings.word_embeddings",),
    positions=("bert.embeddings.position_embeddings",),
    stacks=(encoder_stack("bert"),),
    norms=("bert.embeddings.LayerNorm",),
    head="cls",
    head_dense="cls.predictions.transform.dense",
    head_norm="cls.predictions.transform.LayerNorm",
    head_decoder="cls.predictions.decoder",
    sequence=HeadPaths("classifier", "cls", "bert.pooler.dense", "tanh"),
    token=HeadPaths("classifier", "token"),
    optional_weights=("pooler", "seq_relationship", "position_ids"),
    refuse=only_encoders,
)
