"""The replacement model: every MLP of the subject replaced by the dictionary (METHODS §3), differentiably."""

from typing import Literal

import torch
from torch import Tensor

from isotrace.dictionaries.crosslayer import CrossLayerTranscoder
from isotrace.subjects.subject import Batch, Subject, mlps_computed_by

Mode = Literal["free_running", "teacher_forced"]


def replaced_hidden(
    subject: Subject,
    dictionary: CrossLayerTranscoder,
    batch: Batch,
    mode: Mode,
    clean_mlp_in: list[Tensor] | None = None,
) -> Tensor:
    """Final hidden state `[batch, tokens, d_model]` with every MLP replaced, without error terms.

    free_running: encoders read the drifting stream. teacher_forced: encoders read `clean_mlp_in`
    (`n_layers` tensors `[batch, tokens, d_model]`), the subject's own.
    """
    if (mode == "teacher_forced") != (clean_mlp_in is not None):
        raise ValueError("teacher_forced needs clean_mlp_in, free_running takes none")
    active: dict[int, Tensor] = {}

    def mlp(layer: int, x: Tensor) -> Tensor:
        source = x if clean_mlp_in is None else clean_mlp_in[layer]
        active[layer] = dictionary.encode(layer, source).dense(dictionary.config.n_features)
        return dictionary.decode(layer, active)

    with mlps_computed_by(subject, mlp):
        return subject.hidden(batch.ids, batch.mask)


def ablated_hidden(subject: Subject, batch: Batch, mean_mlp_out: Tensor) -> Tensor:
    """Final hidden state with every MLP's output set to its mean `[n_layers, d_model]`."""
    with mlps_computed_by(subject, lambda layer, x: mean_mlp_out[layer].expand_as(x)), torch.no_grad():
        return subject.hidden(batch.ids, batch.mask)
