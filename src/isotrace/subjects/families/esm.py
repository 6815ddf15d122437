"""ESM: pre-norm blocks, rotary or learned positions, a final norm."""

from typing import Any

from isotrace.subjects.families.family import Family, HeadPaths, Stack


def refuse(config: Any, has_head: bool) -> str | None:
    kind = config.position_embedding_type
    return None if kind in ("absolute", "rotary") else f"transformers does not compute {kind} position embeddings"


ESM = Family(
    model_type="esm",
    base="esm",
    objective="masked",
    words=("esm.embeddings.word_embeddings",),
    positions=("esm.embeddings.position_embeddings",),
    stacks=(
        Stack(
            layers="esm.encoder.layer",
            attention=("attention.self",),
            attn_out="attention.output.dense",
            mlp_in="intermediate.dense",
            mlp_out="output.dense",
            norms=("attention.LayerNorm", "LayerNorm"),
            gelu_after="intermediate",
        ),
    ),
    norms=("esm.embeddings.layer_norm", "esm.encoder.emb_layer_norm_after"),
    head="lm_head",
    head_dense="lm_head.dense",
    head_norm="lm_head.layer_norm",
    head_decoder="lm_head.decoder",
    sequence=HeadPaths("classifier.out_proj", "cls", "classifier.dense", "tanh"),
    token=HeadPaths("classifier", "token"),
    optional_weights=("contact_head", "pooler", "position_ids", "inv_freq"),
    refuse=refuse,
)
