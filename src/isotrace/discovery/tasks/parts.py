"""The components of any mediator as the parts of a task circuit: heads, MLPs, attention layers, neurons."""

from collections.abc import Iterable

import torch
from torch import Tensor

from isotrace.discovery.tasks.basis import Basis, Keep, Statistics
from isotrace.interventions import Mediator
from isotrace.subjects.subject import Batch, Subject


class Parts(Basis):
    """A part is a component at all positions; its mean is a vector, `[parts, width]` per layer in `Statistics.mean`."""

    def __init__(self, subject: Subject, mediator: Mediator) -> None:
        super().__init__(subject)
        self.mediator, self.name = mediator, f"{mediator.name}s"
        self.sizes = tuple(n for n, _ in mediator.sizes(subject))

    @torch.no_grad()
    def clean(self, batch: Batch) -> tuple[Tensor, ...]:
        return self.mediator.record(self.subject, batch)[0]

    @torch.no_grad()
    def kept(self, batch: Batch, keep: Keep, statistics: Statistics, clean: tuple[Tensor, ...] | None = None) -> Tensor:
        def edit(layer: int, values: Tensor) -> Tensor:
            new = statistics.mean[layer].expand_as(values).clone()
            new[:, :, keep[layer]] = (values if clean is None else clean[layer])[:, :, keep[layer]]
            return new

        with self.mediator.edited(self.subject, edit):
            return self.subject.hidden(batch.ids, batch.mask)

    @torch.no_grad()
    def removed(self, batch: Batch, remove: Keep, statistics: Statistics) -> Tensor:
        def edit(layer: int, values: Tensor) -> Tensor:
            new = values.clone()
            new[:, :, remove[layer]] = statistics.mean[layer][remove[layer]]
            return new

        with self.mediator.edited(self.subject, edit):
            return self.subject.hidden(batch.ids, batch.mask)

    @torch.no_grad()
    def statistics(self, batches: Iterable[Batch]) -> Statistics:
        sizes = self.mediator.sizes(self.subject)
        sums, fired = [torch.zeros(size, dtype=torch.float64) for size in sizes], [torch.zeros(n) for n, _ in sizes]
        count = 0
        for batch in batches:
            for layer, values in enumerate(self.clean(batch)):
                sums[layer] += values[batch.mask].sum(0)
                fired[layer] += (values[batch.mask].norm(dim=-1) > 0).sum(0)
            count += int(batch.mask.sum())
        return Statistics(tuple((s / count).float() for s in sums), tuple(f / count for f in fired))
