"""Features of a dictionary as mediators.

With `errors` an edit adds Δa · W_dec to what the subject itself writes (METHODS §9, *delta*): what the dictionary
does not explain stays. Without, the dictionary's output replaces it, so that nothing but the features speaks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from isotrace.dictionaries.dictionary import Dictionary
from isotrace.interventions.component import Edit, Mediator, register
from isotrace.subjects.dispatch import hookpoints_edited
from isotrace.subjects.subject import Subject


@register
@dataclass(frozen=True, eq=False)
class Features(Mediator):
    """Layers are those of the dictionary. `teacher`: activations to encode `[layers][batch, tokens, d_in]` instead
    of what flows, which makes a pass teacher-forced."""

    name: ClassVar[str] = "feature"
    dictionary: Dictionary
    errors: bool = True
    teacher: tuple[Tensor, ...] | None = None

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        config = self.dictionary.config
        return ((config.n_features, 1),) * config.n_layers

    @contextmanager
    def edited(self, subject: Subject, edit: Edit) -> Iterator[None]:
        config, pending, seen = self.dictionary.config, {}, {}

        def read(x: Tensor, layer: int) -> Tensor:
            seen[layer] = x if self.teacher is None else self.teacher[layer]
            values = self.dictionary.encode(layer, seen[layer]).dense(config.n_features)[..., None]
            new = edit(layer, values)
            change = new if not self.errors else None if new is values else new - values
            if change is not None:
                self._write(layer, change[..., 0].expand(*x.shape[:-1], -1), pending)
            return x

        def write(y: Tensor, layer: int) -> Tensor:
            if same:
                read(y, layer)
            total = pending.pop(layer, None)
            if self.errors:
                return y if total is None else y + total
            return self.dictionary.finished(layer, self.dictionary.b_dec[layer] + total, seen[layer])

        same = config.hookpoint_in == config.hookpoint_out
        reads = {} if same else {site: partial(read, layer=layer) for layer, site in enumerate(config.reads)}
        writes = {site: partial(write, layer=layer) for layer, site in enumerate(config.writes)}
        with hookpoints_edited(subject, reads | writes):
            yield

    def _write(self, layer: int, change: Tensor, pending: dict[int, Tensor]) -> None:
        """Add what `change [batch, tokens, F]` writes to every layer the features of this one write to."""
        decoder = self.dictionary.W_dec[layer]
        if not change.requires_grad:  # few features change as a rule, and rows of zeros cost as much as others
            used = torch.nonzero((change != 0).flatten(0, -2).any(0))[:, 0]
            change, decoder = change[..., used], decoder[used]
        written = (change @ decoder).unflatten(-1, (-1, self.dictionary.config.d_out))
        for slot, target in enumerate(self.dictionary.config.targets(layer)):
            pending[target] = pending.get(target, 0) + written[..., slot, :]
