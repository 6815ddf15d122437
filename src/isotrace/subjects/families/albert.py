"""ALBERT: post-norm blocks that share their weights; embeddings narrower than the stream, and a linear map behind."""

import copy
from typing import Any

from torch import nn

from isotrace.subjects.families.bert import only_encoders
from isotrace.subjects.families.family import Family, HeadPaths, Stack


def unshare_layers(model: Any) -> None:
    """One module per layer, all with the same parameters, so that every layer can be hooked by itself."""
    encoder, config = model.base_model.encoder, model.config
    n, groups = config.num_hidden_layers, encoder.albert_layer_groups
    layers = []
    for layer in range(n):
        group = groups[int(layer / (n / len(groups)))]
        keep = {id(kept): kept for kept in (*group.parameters(), *group.buffers(), config)}
        layers.append(copy.deepcopy(group, keep))
    encoder.albert_layer_groups = nn.ModuleList(layers)
    config.num_hidden_groups = n


def share_layers(model: Any) -> None:
    """The reverse: of modules with the same parameters the first stays."""
    encoder = model.base_model.encoder
    first = {id(next(group.parameters())): group for group in reversed(encoder.albert_layer_groups)}
    encoder.albert_layer_groups = nn.ModuleList(reversed(first.values()))
    model.config.num_hidden_groups = len(first)


def refuse(config: Any, has_head: bool) -> str | None:
    if config.inner_group_num != 1:
        return f"its groups hold {config.inner_group_num} layers each (inner_group_num)"
    return only_encoders(config, has_head)


ALBERT = Family(
    model_type="albert",
    base="albert",
    objective="masked",
    words=("albert.embeddings.word_embeddings",),
    positions=("albert.embeddings.position_embeddings",),
    stacks=(
        Stack(
            layers="albert.encoder.albert_layer_groups",
            attention=("albert_layers.0.attention",),
            attn_out="albert_layers.0.attention.dense",
            mlp_in="albert_layers.0.ffn",
            mlp_out="albert_layers.0.ffn_output",
            norms=("albert_layers.0.attention.LayerNorm", "albert_layers.0.full_layer_layer_norm"),
        ),
    ),
    norms=("albert.embeddings.LayerNorm",),
    head="predictions",
    head_dense="predictions.dense",
    head_norm="predictions.LayerNorm",
    head_decoder="predictions.decoder",
    sequence=HeadPaths("classifier", "cls", "albert.pooler", "tanh"),
    token=HeadPaths("classifier", "token"),
    optional_weights=("pooler", "position_ids"),
    prepare=unshare_layers,
    restore=share_layers,
    refuse=refuse,
)
