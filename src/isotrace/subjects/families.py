"""One declarative entry per architecture family: where its hookpoints are and how norms and head are built.

A new family is one `Family` plus passing `tests/subjects/test_conformance.py`.
"""

import re
from dataclasses import dataclass
from typing import Literal

from isotrace.errors import SubjectError

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture, as transformers names them.

    `{}` in a path is the layer index. The MLP is `mlp_in` (its first linear map, whose *input* is the
    hookpoint `layers.{}.mlp_in`), a pointwise function, and `mlp_out` (its last linear map, whose *input*,
    `d_ff` wide, is `layers.{}.neuron` and whose *output* is `layers.{}.mlp_out`). `attn_out` is the module whose
    output attention adds to the residual stream, and `layers` the list of blocks between which that stream runs.
    `norms` are all LayerNorms on the way from the embedding to the final hidden state. `gelu_after` is the module
    that computes `mlp_in` and then the exact GELU, where the architecture writes that GELU out in several
    operations; None where it does not.
    The head is dense → pointwise function → norm → decoder.
    """

    model_type: str
    base: str
    word_embedding: str
    position_embedding: str | None
    layers: str
    attention: str
    attn_out: str
    mlp_in: str
    mlp_out: str
    gelu_after: str | None
    layer_norms: tuple[str, ...]
    other_norms: tuple[str, ...]
    head: str
    head_dense: str
    head_norm: str
    head_decoder: str
    optional_weights: tuple[str, ...]

    @property
    def hookpoints(self) -> dict[str, tuple[str, Side]]:
        """Kind of hookpoint → (module path, side), in the order in which one block computes them."""
        block = f"{self.layers}.{{}}"
        return {
            "resid_pre": (block, "input"),
            "attn_out": (self.attn_out, "output"),
            "mlp_in": (self.mlp_in, "input"),
            "neuron": (self.mlp_out, "input"),
            "mlp_out": (self.mlp_out, "output"),
            "resid_post": (block, "output"),
        }

    def hookpoint(self, name: str, n_layers: int) -> tuple[str, Side]:
        """(module path, side) of `layers.N.KIND`. Raises SubjectError for another layer or kind."""
        match = re.fullmatch(r"layers\.(\d+)\.(\w+)", name, re.ASCII)
        if match is None or int(match[1]) >= n_layers or match[2] not in self.hookpoints:
            raise SubjectError(
                f"the subject has no hookpoint {name!r}: give layers.N.KIND, N below {n_layers}, "
                f"KIND one of {', '.join(self.hookpoints)}."
            )
        path, side = self.hookpoints[match[2]]
        return path.format(int(match[1])), side


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
        attn_out="esm.encoder.layer.{}.attention.output.dense",
        mlp_in="esm.encoder.layer.{}.intermediate.dense",
        mlp_out="esm.encoder.layer.{}.output.dense",
        gelu_after="esm.encoder.layer.{}.intermediate",
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
        attn_out="bert.encoder.layer.{}.attention.output.dense",
        mlp_in="bert.encoder.layer.{}.intermediate.dense",
        mlp_out="bert.encoder.layer.{}.output.dense",
        gelu_after=None,
        layer_norms=("bert.encoder.layer.{}.attention.output.LayerNorm", "bert.encoder.layer.{}.output.LayerNorm"),
        other_norms=("bert.embeddings.LayerNorm",),
        head="cls",
        head_dense="cls.predictions.transform.dense",
        head_norm="cls.predictions.transform.LayerNorm",
        head_decoder="cls.predictions.decoder",
        optional_weights=("pooler", "seq_relationship", "position_ids"),
    )
)
