"""The replacement model: what the dictionary writes stands in for what the subject wrote (METHODS §3),
differentiably. For a transcoder that is every MLP it covers, for an autoencoder the hookpoint itself."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from isotrace.base.errors import SubjectError
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.subjects.dispatch import hookpoints_edited
from isotrace.subjects.heads.pooled import LATENT
from isotrace.subjects.subject import Batch, Subject

Mode = Literal["free_running", "teacher_forced"]


def replaced_hidden(
    subject: Subject,
    dictionary: Dictionary,
    batch: Batch,
    mode: Mode,
    clean: list[Tensor] | None = None,
    reads: Sequence[int] = (),
) -> Tensor:
    """Final hidden state `[batch, tokens, d_model]`, or those of the layers `reads` as `Subject.hidden` gives them,
    with every output of the dictionary in place, no error terms.

    free_running: encoders read the drifting stream. teacher_forced: encoders read `clean`, the subject's own
    activations at `config.reads` (one tensor `[batch, tokens, d_in]` per layer).
    """
    if (mode == "teacher_forced") != (clean is not None):
        raise ValueError("teacher_forced needs clean activations, free_running takes none")
    components = Features(dictionary, errors="drop", teacher=None if clean is None else tuple(clean))
    with components.edited(subject, lambda _, values: values):
        return subject.hidden(batch.ids, batch.mask, reads)


@torch.no_grad()
def ablated_hidden(subject: Subject, dictionary: Dictionary, batch: Batch, mean_out: Tensor) -> Tensor:
    """Final hidden state with everything the dictionary writes set to its mean `[n_layers, d_out]`."""
    edits = {site: mean_out[layer].expand_as for layer, site in enumerate(dictionary.config.writes)}
    with hookpoints_edited(subject, edits):
        return subject.hidden(batch.ids, batch.mask)


def asked_of(subject: Subject, configs: Sequence[DictionaryConfig]) -> Subject:
    """As it is, or as it reconstructs where dictionaries write to its latent, which nothing else reads. Raises
    SubjectError where only some do."""
    latent = {site.endswith(f".{LATENT}") for config in configs for site in config.writes}
    if len(latent) > 1:
        raise SubjectError("dictionaries of the latent are asked what is decoded from it, others are not: part them.")
    return subject.reconstructing() if latent == {True} else subject
