"""The running subject with a mask over candidate nodes: a node stands at m · its value + (1 − m) · its reference, every
other at its reference. Differentiable in the mask, and through all that is recomputed."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import Tensor

from isotrace.attribution.ablation import Nodes
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.interventions.components import Components, Values
from isotrace.kernels import sparse_rows
from isotrace.subjects.dispatch import hookpoints_edited
from isotrace.subjects.subject import Subject


class Masked:
    """`candidates [n, 3]` of sequences of `n_tokens`; what is not one of them stands at `reference`, `[components, 1]`
    per layer."""

    def __init__(
        self, subject: Subject, components: Components, reference: Values, candidates: Nodes, n_tokens: int
    ) -> None:
        self.subject, self.components, self.reference, self.n_tokens = subject, components, reference, n_tokens
        sizes, candidates = components.sizes(subject), candidates.to(subject.device)
        self.where = [torch.nonzero(candidates[:, 0] == layer)[:, 0] for layer in range(len(sizes))]
        self.at = [candidates[where][:, 1:].unbind(1) for where in self.where]
        self.widths = [n for n, _ in sizes]
        dictionary = components.dictionary if isinstance(components, Features) else None
        sparse = dictionary is not None and dictionary.config.reads != dictionary.config.writes
        self.written = self._written(dictionary) if dictionary is not None and sparse else None

    def table(self, mask: Tensor, layer: int) -> Tensor:
        """`[tokens, components]`, zero where there is no candidate."""
        found = mask.new_zeros(self.n_tokens, self.widths[layer])
        return found.index_put(tuple(self.at[layer]), mask[self.where[layer]])

    def by(self, mask: Tensor) -> AbstractContextManager[None]:
        """Within the context the subject runs under `mask [n]`."""
        if self.written is None:
            return self.components.edited(self.subject, partial(self._dense, mask))
        return self._sparse(mask, self.written)

    def _dense(self, mask: Tensor, layer: int, values: Tensor) -> Tensor:
        base = self.reference[layer].to(values)
        return base + self.table(mask, layer).to(values)[..., None] * (values - base)

    def _written(self, dictionary: Dictionary) -> list[tuple[Tensor, Tensor]]:
        """Per layer, what every feature at its reference writes `[n_targets · d]`, and what each candidate's share of
        that is `[n_candidates, n_targets · d]`."""
        found = []
        for layer, (_, feature) in enumerate(self.at):
            base = self.reference[layer][:, 0]
            rows = base[feature, None] * dictionary.W_dec[layer][feature]
            found.append((base @ dictionary.W_dec[layer], rows))
        return found

    @contextmanager
    def _sparse(self, mask: Tensor, written: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
        """Δ = (1 − m)(reference − a), written out: the references of all, less those of the kept, less the active."""
        assert isinstance(self.components, Features)
        features, pending, seen = self.components, {}, {}
        dictionary, config = features.dictionary, features.dictionary.config

        def read(x: Tensor, layer: int) -> Tensor:
            (everything, rows), weight = written[layer], dictionary.W_dec[layer]
            active, own = dictionary.encode(layer, x), mask[self.where[layer]]
            table = self.table(mask, layer).expand(len(x), -1, -1)
            away = (table.gather(-1, active.indices.long()) - 1) * active.values
            k = away.shape[-1]
            # a kept node is 0 away, and its slope counts all the same
            change = sparse_rows(away.reshape(-1, k), active.indices.reshape(-1, k).long(), weight)
            change = change.view(*x.shape[:2], -1)
            given = everything.expand(self.n_tokens, -1).index_add(0, self.at[layer][0], -own[:, None] * rows)
            features.add(layer, change + given, pending)
            seen[layer] = x
            return x

        def write(y: Tensor, layer: int) -> Tensor:
            return y + features.scaled(layer, pending.pop(layer), seen[layer])

        edits = {site: partial(read, layer=i) for i, site in enumerate(config.reads)}
        with hookpoints_edited(self.subject, edits | {s: partial(write, layer=i) for i, s in enumerate(config.writes)}):
            yield
