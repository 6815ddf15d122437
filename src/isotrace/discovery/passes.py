"""Passes of one batch under many circuits: what they have in common is computed once.

    prefix     what runs before the first layer of the circuits' parts reads anything: whole blocks, and the attention
               of the block it reads in
    first      what that layer reads, and its activations
    clean      of teacher-forced passes all layers' activations

Features are then never laid out densely: the columns of a circuit are taken from the sparse activations, and layers
without a part of it are not encoded. The numbers are those of `Basis.kept` and `Basis.removed`, to the bit: each value
is computed by the same operation on the same operands.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isotrace.dictionaries.features import Features
from isotrace.dictionaries.sparsity.rule import SparseActivations
from isotrace.discovery.tasks.basis import Basis, Keep, Statistics
from isotrace.interventions.writers import Writers
from isotrace.subjects.dispatch import Site, hookpoints_edited, overlaid, watched
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.subject import Batch

HELD_BYTES = 2**28  # of what the circuits of a judge share
BEHIND_ATTENTION = ("mlp_in", "mlp_out", "neuron", "resid_post")  # hookpoints that a block's attention does not see


class _ReadError(Exception):
    """The first layer reads."""


@dataclass(frozen=True, eq=False)
class Passes:
    """`base`: what all parts at their mean write, see `Writers.base`; empty of components that are no features."""

    basis: Basis
    batch: Batch
    statistics: Statistics
    base: dict[int, Tensor]

    def final(self, keep: Keep, way: str) -> Tensor:
        """Final hidden state `[batch, tokens, d_model]` of `way`, see `sweep.Way`."""
        if not isinstance(self.basis.components, Features):
            clean = self.basis.clean(self.batch) if way == "teacher_forced" else None
            with self.after_prefix():
                if way == "removed":
                    return self.basis.removed(self.batch, keep, self.statistics)
                return self.basis.kept(self.batch, keep, self.statistics, clean)
        run = self._removed(keep) if way == "removed" else self._kept(keep, way)
        with torch.no_grad(), fast_kernels(self.basis.subject), self.after_prefix(), run:
            return self.basis.subject.hidden(self.batch.ids, self.batch.mask)

    def _kept(self, keep: Keep, way: str):
        """Context in which the parts of `keep` alone write, all others at their mean."""
        features, given = self.basis.writers, self.clean if way == "teacher_forced" else None
        total: dict[int, Tensor] = {}

        def output(layer: int, x: Tensor) -> Tensor:
            x, active = (x, None) if given is None else given[layer]
            if len(keep[layer]):
                change = self._values(layer, x, keep[layer], active) - self.statistics.mean[layer][keep[layer]]
                features.put(self.basis.subject, layer, change, total, keep[layer])
            part = self.base[layer] + total.pop(layer) if layer in total else self.base[layer].expand(*x.shape[:-1], -1)
            return features.finish(self.basis.subject, layer, part, x)

        return features.computed_by(self.basis.subject, output)

    def _removed(self, keep: Keep):
        """Context in which the parts of `keep` are at their mean, and all else is the subject's own."""
        features, subject = self.basis.writers, self.basis.subject
        changes: dict[int, Tensor] = {}
        seen: dict[int, Tensor] = {}
        same = [*features.reads(subject)] == [*features.writes(subject)]

        def read(x: Tensor, layer: int) -> Tensor:
            seen[layer] = x
            if len(keep[layer]):
                change = self.statistics.mean[layer][keep[layer]] - self._values(layer, x, keep[layer], None)
                features.put(subject, layer, change, changes, keep[layer])
            return x

        def write(y: Tensor, layer: int) -> Tensor:
            if same:
                read(y, layer)
            change = changes.pop(layer, None)
            return y if change is None else y + features.scaled(layer, change, seen[layer])

        return features._hooked(subject, read, write)

    def _values(self, layer: int, x: Tensor, units: Tensor, active: SparseActivations | None) -> Tensor:
        """Activations `[batch, tokens, units]` of what flows, or of those that are given."""
        features = self.basis.components
        assert isinstance(features, Features)
        if active is None and layer == 0 and self._first is not None:
            active = self._first
        active = features.dictionary.encode(layer, x) if active is None else active
        return active.columns(units, features.dictionary.config.n_features)

    @cached_property
    def prefix(self) -> tuple[dict[nn.Module, Any], Tensor | None]:
        """(what modules give that run before the first layer reads, what it reads); nothing of components that are no
        `Writers`."""
        subject, parts = self.basis.subject, self.basis.components
        if not isinstance(parts, Writers):
            return {}, None
        blocks = [subject.hookpoint(f"layers.{i}.resid_post")[0] for i in range(subject.n_layers)]
        found: dict[nn.Module, Any] = {}
        read: list[Tensor] = []

        def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if module in blocks:  # what ran inside it need not be known, and of blocks the last is enough
                ran = [m for m in found if m in blocks]
                found.clear()
                found.update(dict.fromkeys([*ran, module], output))
            else:
                found[module] = output

        def stop(x: Tensor) -> Tensor:
            read.append(x)
            raise _ReadError

        sites = (parts.reads(subject)[0], parts.writes(subject)[0])
        inside = all(site.rpartition(".")[2] in BEHIND_ATTENTION for site in sites)
        modules = [*blocks, *(subject.attentions if inside else ())]
        with (
            torch.no_grad(), fast_kernels(subject), watched(modules, see), hookpoints_edited(subject, {sites[0]: stop}),
            suppress(_ReadError),
        ):  # fmt: skip
            subject.hidden(self.batch.ids, self.batch.mask)
        return found, read[0]

    @contextmanager
    def after_prefix(self) -> Iterator[None]:
        """Within the context the prefix does not run."""

        def giving(output: Any) -> Callable[..., Any]:
            return lambda *args, **kwargs: output

        with ExitStack() as stack:
            if given := self.prefix[0]:
                stack.enter_context(overlaid((m, Site(forward=giving(out), fresh=True)) for m, out in given.items()))
            yield

    @cached_property
    @torch.no_grad()
    def _first(self) -> SparseActivations | None:
        """Activations of the first layer, which nothing changes before it reads."""
        features, x = self.basis.components, self.prefix[1]
        return features.dictionary.encode(0, x) if isinstance(features, Features) and x is not None else None

    @cached_property
    @torch.no_grad()
    def clean(self) -> list[tuple[Tensor, SparseActivations]]:
        """What every layer reads in the subject's own pass, and its activations."""
        features = self.basis.components
        assert isinstance(features, Features)
        return [
            (x, features.dictionary.encode(i, x)) for i, x in enumerate(features.clean(self.basis.subject, self.batch))
        ]

    @property
    def held_bytes(self) -> int:
        """Of what is kept from one circuit to the next."""
        made = [vars(self).get(name) for name in ("prefix", "_first", "clean")]
        return sum(tensor.untyped_storage().nbytes() for tensor in _tensors(made))


@dataclass(eq=False)
class Made:
    """Batches (numbers of the examples, batch) of a judge, and the passes on them; what passes share is kept where all
    of it takes less than HELD_BYTES."""

    batches: Sequence[tuple[np.ndarray, Batch]]
    held: dict[tuple[Basis, int], Passes] = field(default_factory=dict)

    def passes(self, basis: Basis, statistics: Statistics) -> Iterator[tuple[np.ndarray, Passes]]:
        base = None
        for number, (rows, batch) in enumerate(self.batches):
            found = self.held.pop((basis, number), None)
            if found is None or found.statistics is not statistics:
                base = self._base(basis, statistics) if base is None else base
                found = Passes(basis, batch, statistics, base)
            yield rows, found
            if found.held_bytes + sum(other.held_bytes for other in self.held.values()) <= HELD_BYTES:
                self.held[basis, number] = found

    def _base(self, basis: Basis, statistics: Statistics) -> dict[int, Tensor]:
        features = isinstance(basis.components, Features)
        return basis.writers.base(basis.subject, statistics.mean) if features else {}


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, SparseActivations):
        yield from (given.indices, given.values)
    elif isinstance(given, dict | list | tuple):
        for part in given.values() if isinstance(given, dict) else given:
            yield from _tensors(part)
