"""What a task circuit is made of: components at all positions, each at its own activation or at its mean.

*Kept* is the circuit alone: all components outside it stand at their mean over the task's sequences. Features then
replace what the subject writes and leave their errors out, so that nothing but the circuit, attention and the
embeddings speaks (METHODS §3, *replace*, without errors). *Removed* is the subject itself with the circuit at its mean.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from isotrace.interventions.components import Components, Values
from isotrace.interventions.writers import Writers
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.subject import Batch, Subject

Keep = tuple[Tensor, ...]
"""Which components of every layer are kept: indices int64 `[n_kept]`."""


@dataclass(frozen=True)
class Statistics:
    """Over the real tokens of the task's discovery sequences, per layer: mean activation `[components, width]`, or
    `[components]` of components of one number, and `[components]` the share of tokens on which one is active (a number
    above zero, a vector that is not zero)."""

    mean: tuple[Tensor, ...]
    density: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Basis:
    subject: Subject
    components: Components

    @property
    def name(self) -> str:
        return f"{self.components.name}s"

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Components per layer."""
        return tuple(n for n, _ in self.components.sizes(self.subject))

    @property
    def n(self) -> int:
        return sum(self.sizes)

    @property
    def writers(self) -> Writers:
        """Raises TypeError for components that write no vectors of their own."""
        if not isinstance(self.components, Writers):
            raise TypeError(f"{self.name} write no vectors of their own")
        return self.components

    def split(self, order: Tensor) -> Keep:
        """Global indices, layers one after the other, as indices per layer."""
        edges = torch.tensor([0, *self.sizes]).cumsum(0)
        return tuple(order[(order >= low) & (order < high)] - low for low, high in pairwise(edges))

    def means(self, statistics: Statistics) -> Values:
        """`[components, width]` per layer."""
        return tuple(mean[:, None] if mean.dim() == 1 else mean for mean in statistics.mean)

    @torch.no_grad()
    def clean(self, batch: Batch) -> tuple[Tensor, ...]:
        """What `kept` needs of the subject's own pass for a teacher-forced one, per layer."""
        return self.components.clean(self.subject, batch)

    @torch.no_grad()
    def kept(self, batch: Batch, keep: Keep, statistics: Statistics, clean: tuple[Tensor, ...] | None = None) -> Tensor:
        """Final hidden state `[batch, tokens, d_model]` of the circuit alone, every other component at its mean.
        Free-running, or teacher-forced with `clean`."""

        means = self.means(statistics)

        def edit(layer: int, values: Tensor) -> Tensor:
            new = means[layer].expand_as(values).clone()
            new[:, :, keep[layer]] = values[:, :, keep[layer]]
            return new

        return self._run(self.components.alone(statistics.mean, clean), batch, edit)

    @torch.no_grad()
    def removed(self, batch: Batch, remove: Keep, statistics: Statistics) -> Tensor:
        """Final hidden state of the subject with the components in `remove` at their mean and all else its own."""

        means = self.means(statistics)

        def edit(layer: int, values: Tensor) -> Tensor:
            if not len(remove[layer]):
                return values
            new = values.clone()
            new[:, :, remove[layer]] = means[layer][remove[layer]]
            return new

        return self._run(self.components, batch, edit)

    def _run(self, components: Components, batch: Batch, edit) -> Tensor:
        with fast_kernels(self.subject), components.edited(self.subject, edit):
            return self.subject.hidden(batch.ids, batch.mask)

    @torch.no_grad()
    def statistics(self, batches: Iterable[Batch]) -> Statistics:
        """Of the subject's own activations."""
        sizes = self.components.sizes(self.subject)
        sums = [torch.zeros(size, dtype=torch.float64) for size in sizes]
        fired, count = [torch.zeros(n, dtype=torch.float64) for n, _ in sizes], 0
        for batch in batches:
            for layer, values in enumerate(self.components.record(self.subject, batch)[0]):
                real = values[batch.mask]
                sums[layer] += real.sum(0).to(sums[layer])
                one = real.shape[-1] == 1
                fired[layer] += (real[..., 0] > 0 if one else real.norm(dim=-1) > 0).sum(0).to(fired[layer])
            count += int(batch.mask.sum())
        means = ((total / count).float().to(self.subject.device) for total in sums)
        means = tuple(mean[:, 0] if mean.shape[1] == 1 else mean for mean in means)
        return Statistics(means, tuple((f / count).float() for f in fired))
