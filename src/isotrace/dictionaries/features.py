"""Features of a dictionary: as components, and every activation of theirs in some sequences."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from isotrace.activations.harvest import record
from isotrace.base.errors import InputError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.interventions.components import Values, register
from isotrace.interventions.writers import Writers
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Batch, Subject

BATCH_TOKENS = 2_048


@register
@dataclass(frozen=True, eq=False)
class Features(Writers):
    """Layers are those of the dictionary. `errors`: `keep` what the dictionary does not explain, so that an edit adds
    what changes to what the subject writes, or `drop` it, so that the dictionary's output stands in its place.

    `teacher`: activations to encode `[layers][batch, tokens, d_in]` instead of what flows, which makes a pass
    teacher-forced. `near`: see `Writers.baseline`, `[layers][F]`. `lengths`, one a layer: tokens are brought to it
    before they are encoded, and what changes is written in proportion to their own; None: they are encoded as they are.
    """

    name: ClassVar[str] = "feature"
    dictionary: Dictionary
    errors: Literal["keep", "drop"] = "keep"
    teacher: Values | None = None
    near: Values | None = None
    lengths: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.lengths is not None and (self.errors == "drop" or len(self.lengths) != self.dictionary.config.n_layers):
            raise InputError("lengths are one a layer, of features that keep errors: give as many as there are layers.")

    @property
    def replaces(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.errors == "drop"

    @property
    def key(self) -> Any:
        return "feature", id(self.dictionary), self.teacher is None, self.lengths

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        config = self.dictionary.config
        return ((config.n_features, 1),) * config.n_layers

    def reads(self, subject: Subject) -> Sequence[str]:
        return self.dictionary.config.reads

    def writes(self, subject: Subject) -> Sequence[str]:
        return self.dictionary.config.writes

    def replaces_mlps(self, subject: Subject) -> bool:
        config = self.dictionary.config
        whole = config.layers == tuple(range(subject.n_layers))
        return whole and (config.hookpoint_in, config.hookpoint_out) == ("layers.{}.mlp_in", "layers.{}.mlp_out")

    def source(self, layer: int, x: Tensor) -> Tensor:
        x = x if self.teacher is None else self.teacher[layer]
        return x if self.lengths is None else x / self._share(layer, x)

    def baseline(self, layer: int) -> Tensor | None:
        return None if self.near is None else self.near[layer]

    def encode(self, layer: int, x: Tensor) -> Tensor:
        return self.dictionary.encode(layer, x).dense(self.dictionary.config.n_features)

    def rows(self, subject: Subject, layer: int, keep: Tensor | slice) -> Tensor:
        return self.dictionary.W_dec[layer][keep]

    def targets(self, layer: int) -> list[int]:
        return [*self.dictionary.config.targets(layer)]

    def finish(self, subject: Subject, layer: int, total: Tensor, x: Tensor) -> Tensor:
        return self.dictionary.finished(layer, total + self.dictionary.b_dec[layer], x)

    def scaled(self, layer: int, change: Tensor, x: Tensor) -> Tensor:
        if self.lengths is not None:
            change = change * self._share(layer, x if self.teacher is None else self.teacher[layer])
        if self.dictionary.config.token_normalization == "none":
            return change
        return change * self.dictionary.standardised(self.source(layer, x))[2]

    def _share(self, layer: int, x: Tensor) -> Tensor:
        """`[..., 1]`: length of each token, of that to which it is brought; one of none stays where it is."""
        assert self.lengths is not None
        return x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny) / self.lengths[layer]

    def clean(self, subject: Subject, batch: Batch) -> Values:
        sites = self.reads(subject)
        captured = subject.run(batch, capture=sites, logits=False).captured
        return tuple(captured[site] for site in sites)

    def alone(self, mean: Values, clean: Values | None = None) -> "Features":
        return replace(self, errors="drop", teacher=clean, near=tuple(m.flatten() for m in mean))


def active_features(subject: Subject, dictionary: Dictionary, batches: Iterable[Batch]) -> Iterator[np.ndarray]:
    """Per batch, what is positive, as a structured array with `sequence` (row of the batch), `position`, `layer` (of
    the subject), `feature` and `activation`, ordered by all of them; padding is left out, special tokens are not. Where
    sequences are pooled, `position` is −1."""
    config, pooled = dictionary.config, is_pooled(dictionary.config.reads)
    kind = [("sequence", "i8"), ("position", "i8"), ("layer", "i8"), ("feature", "i8"), ("activation", "f4")]
    for batch in batches:
        parts: list[np.ndarray] = []

        def take(slot: int, x: Tensor, batch: Batch = batch, parts: list[np.ndarray] = parts) -> None:
            active = dictionary.encode(slot, x)
            real = batch.mask[:, :1] if pooled else batch.mask
            rows, positions, places = torch.nonzero((active.values > 0) & real[..., None], as_tuple=True)
            found = np.empty(len(rows), dtype=kind)
            found["sequence"], found["layer"] = rows.cpu(), config.layers[slot]
            found["position"] = -1 if pooled else positions.cpu()
            found["feature"] = active.indices[rows, positions, places].cpu()
            found["activation"] = active.values[rows, positions, places].float().cpu()
            parts.append(found)

        record(subject, batch, config.reads, take)
        every = np.concatenate(parts)
        yield every[np.lexsort([every[name] for name in ("feature", "layer", "position", "sequence")])]


def batches_of(subject: Subject, texts: Sequence[str]) -> list[tuple[np.ndarray, Batch]]:
    """(rows of `texts`, unpadded batch), shortest first, about `BATCH_TOKENS` tokens each. Raises InputError for a text
    that the subject cannot read."""
    alone = [subject.tokenize([text]) for text in texts]
    lengths = np.asarray([one.ids.shape[1] for one in alone], dtype=int)
    found = []
    for length in np.unique(lengths):
        rows, step = np.flatnonzero(lengths == length), max(1, BATCH_TOKENS // int(length))
        for part in (rows[start : start + step] for start in range(0, len(rows), step)):
            ones = [alone[row] for row in part]
            ids, mask = (torch.cat(tensors) for tensors in zip(*((one.ids, one.mask) for one in ones), strict=True))
            offsets = tuple(one.offsets[0] for one in ones)
            found.append((part, Batch(ids, mask, tuple(one.sequences[0] for one in ones), offsets)))
    return found
