"""One declarative entry per architecture family: where its hookpoints are and how norms and head are built.

A new family is one `Family` plus passing `tests/subjects/test_conformance.py`.
"""

from dataclasses import dataclass

from isotrace.errors import SubjectError


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture, as transformers names them.

    `{}` in a path is the layer index. The MLP is `mlp_in` (its first linear map, whose *input* is the
    hookpoint `layers.{}.mlp_in`), a pointwise function, and `mlp_out` (its last linear map, whose *output*
    is `layers.{}.mlp_out`). `norms` are all LayerNorms on the way from the embedding to the final hidden
    state. The head is dense → pointwise function → norm → decoder.
    """

    model_type: str
    base: str
    word_embedding: str
    position_embedding: str | None
    layers: str
    attention: str
    mlp_in: str
    mlp_out: str
    layer_norms: tuple[str, ...]
    other_norms: tuple[str, ...]
    head: str
    head_dense: str
    head_norm: str
    head_decoder: str
    optional_weights: tuple[str, ...]


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    FAMILIES[family.model_type] = family
    return family


def family_of(model_type: str) -> Family:
    """Raises SubjectError for an architecture without an entry."""
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise SubjectError(f"no family entry for model type {model_type!r} (known: {known}): add one, see docs.")
    return FAMILIES[model_type]


ESM = register(
    Family(
        model_type="esm",
        base="esm",
        word_embedding="esm.embeddings.word_embeddings",
        position_embedding="esm.embeddings.position_embeddings",
        layers="esm.encoder.layer",
        attention="esm.encoder.layer.{}.attention.self",
        mlp_in="esm.encoder.layer.{}.intermediate.dense",
        mlp_out="esm.encoder.layer.{}.output.dense",
        layer_norms=("esm.encoder.layer.{}.attention.LayerNorm", "esm.encoder.layer.{}.LayerNorm"),
        other_norms=("esm.embeddings.layer_norm", "esm.encoder.emb_layer_norm_after"),
        head="lm_head",
        head_dense="lm_head.dense",
        head_norm="lm_head.layer_norm",
        head_decoder="lm_head.decoder",
        optional_weights=("contact_head", "pooler", "position_ids", "inv_freq"),
    )
)

BERT = register(
    Family(
        model_type="bert",
        base="bert",
        word_embedding="bert.embeddings.word_embeddings",
        position_embedding="bert.embeddings.position_embeddings",
        layers="bert.encoder.layer",
        attention="bert.encoder.layer.{}.attention.self",
        mlp_in="bert.encoder.layer.{}.intermediate.dense",
        mlp_out="bert.encoder.layer.{}.output.dense",
        layer_norms=("bert.encoder.layer.{}.attention.output.LayerNorm", "bert.encoder.layer.{}.output.LayerNorm"),
        other_norms=("bert.embeddings.LayerNorm",),
        head="cls",
        head_dense="cls.predictions.transform.dense",
        head_norm="cls.predictions.transform.LayerNorm",
        head_decoder="cls.predictions.decoder",
        optional_weights=("pooler", "seq_relationship", "position_ids"),
    )
)
