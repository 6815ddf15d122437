"""The replacement model: what the dictionary writes stands in for what the subject wrote (METHODS §3),
differentiably. For a transcoder that is every MLP it covers, for an autoencoder the hookpoint itself."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from isotrace.dictionaries.dictionary import Dictionary
from isotrace.subjects.dispatch import hookpoints_edited, mlps_computed_by
from isotrace.subjects.subject import Batch, Subject

Mode = Literal["free_running", "teacher_forced"]


def replaced_hidden(
    subject: Subject, dictionary: Dictionary, batch: Batch, mode: Mode, clean: list[Tensor] | None = None
) -> Tensor:
    """Final hidden state `[batch, tokens, d_model]` with every output of the dictionary in place, no error terms.

    free_running: encoders read the drifting stream. teacher_forced: encoders read `clean`, the subject's own
    activations at `config.reads` (one tensor `[batch, tokens, d_in]` per layer).
    """
    if (mode == "teacher_forced") != (clean is not None):
        raise ValueError("teacher_forced needs clean activations, free_running takes none")
    config, active = dictionary.config, {}

    def output(layer: int, x: Tensor) -> Tensor:
        source = x if clean is None else clean[layer]
        active[layer] = dictionary.encode(layer, source).dense(config.n_features)
        return dictionary.decode(layer, active, source)

    mlps = config.layers == tuple(range(subject.n_layers)) and config.hookpoint_in == "layers.{}.mlp_in"
    if mlps and config.hookpoint_out == "layers.{}.mlp_out":  # the subject's own MLPs need not run
        with mlps_computed_by(subject, output):
            return subject.hidden(batch.ids, batch.mask)
    read: dict[int, Tensor] = {}

    def reader(layer: int) -> Callable[[Tensor], Tensor]:
        def keep(x: Tensor) -> Tensor:
            read[layer] = x
            return x

        return keep

    def writer(layer: int) -> Callable[[Tensor], Tensor]:
        return lambda y: output(layer, y if config.hookpoint_in == config.hookpoint_out else read[layer])

    edits = {site: reader(layer) for layer, site in enumerate(config.reads)}
    edits |= {site: writer(layer) for layer, site in enumerate(config.writes)}
    with hookpoints_edited(subject, edits):
        return subject.hidden(batch.ids, batch.mask)


@torch.no_grad()
def ablated_hidden(subject: Subject, dictionary: Dictionary, batch: Batch, mean_out: Tensor) -> Tensor:
    """Final hidden state with everything the dictionary writes set to its mean `[n_layers, d_out]`."""
    edits = {site: mean_out[layer].expand_as for layer, site in enumerate(dictionary.config.writes)}
    with hookpoints_edited(subject, edits):
        return subject.hidden(batch.ids, batch.mask)
