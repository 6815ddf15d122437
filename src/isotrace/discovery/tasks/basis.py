"""What a task circuit is made of: the features of a dictionary, or the subject's own neurons, as parts that write.

Either way the output at every site is  base_t + Σ (a − ā) W_t  over the parts that are kept; all others stand at
their mean ā over the task's sequences, and there is no error term: nothing but the circuit, attention and the
embeddings speaks (METHODS §3, *replace*, without errors). With every neuron kept that is the subject itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from isotrace.dictionaries.dictionary import Dictionary
from isotrace.subjects.dispatch import hookpoints_edited, mlps_computed_by
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.subject import Batch, Subject

Keep = tuple[Tensor, ...]
"""Which parts of every layer are kept: indices int64 `[n_kept]`."""


@dataclass(frozen=True)
class Statistics:
    """Over the real tokens of the task's discovery sequences, `[parts]` per layer: mean activation, and the share of
    tokens on which a part is active (above zero)."""

    mean: tuple[Tensor, ...]
    density: tuple[Tensor, ...]


class Basis(ABC):
    """`sizes`: parts per layer."""

    name: str
    sizes: tuple[int, ...]

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @property
    def n(self) -> int:
        return sum(self.sizes)

    def split(self, order: Tensor) -> Keep:
        """Global indices, layers one after the other, as indices per layer."""
        edges = torch.tensor([0, *self.sizes]).cumsum(0)
        return tuple(order[(order >= low) & (order < high)] - low for low, high in pairwise(edges))

    @abstractmethod
    def clean(self, batch: Batch) -> tuple[Tensor, ...]:
        """What `kept` needs of the subject's own pass for a teacher-forced one, per layer."""

    @abstractmethod
    def kept(self, batch: Batch, keep: Keep, statistics: Statistics, clean: tuple[Tensor, ...] | None = None) -> Tensor:
        """Final hidden state `[batch, tokens, d_model]` of the circuit alone, every other part at its mean.
        Free-running, or teacher-forced with `clean`."""

    @abstractmethod
    def removed(self, batch: Batch, remove: Keep, statistics: Statistics) -> Tensor:
        """Final hidden state of the subject with the parts in `remove` at their mean and all else its own."""

    @abstractmethod
    def statistics(self, batches: Iterable[Batch]) -> Statistics:
        """Of the subject's own activations."""


class Writers(Basis):
    """Parts that write vectors of their own to the stream. `reads`, `writes`: hookpoints, one per layer."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @abstractmethod
    def encode(self, layer: int, x: Tensor) -> Tensor:
        """Activations `[..., parts]` of what is read, `[..., d_in]`."""

    @abstractmethod
    def rows(self, layer: int, keep: Tensor | slice) -> Tensor:
        """What parts write per unit of activation, to all targets of the layer side by side:
        `[n_kept, n_targets · d_out]`."""

    @abstractmethod
    def targets(self, layer: int) -> list[int]:
        """The layers that parts of this one write to."""

    @abstractmethod
    def finish(self, layer: int, total: Tensor, x: Tensor) -> Tensor:
        """The output of a layer from what parts wrote to it and what the layer read: bias, skip path."""

    @property
    def replaces_mlps(self) -> bool:
        """The subject's own MLPs need not run."""
        return False

    def clean(self, batch: Batch) -> tuple[Tensor, ...]:
        captured = self.subject.run(batch, capture=self.reads, logits=False).captured
        return tuple(captured[site] for site in self.reads)

    @contextmanager
    def computed_by(self, output: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
        """Within the context `output(layer, x)` is what is written, x what the layer reads."""
        if self.replaces_mlps:
            with mlps_computed_by(self.subject, output):
                yield
            return
        seen: dict[int, Tensor] = {}

        def read(x: Tensor, layer: int) -> Tensor:
            seen[layer] = x
            return x

        def write(y: Tensor, layer: int) -> Tensor:
            return output(layer, y if self.reads == self.writes else seen[layer])

        with self._hooked(read, write):
            yield

    def _hooked(self, read: Callable[..., Tensor], write: Callable[..., Tensor]) -> AbstractContextManager[None]:
        """`read(x, layer=)` at what is read, `write(y, layer=)` at what is written; where both are one, the latter."""
        reads = {} if self.reads == self.writes else {s: partial(read, layer=i) for i, s in enumerate(self.reads)}
        return hookpoints_edited(self.subject, reads | {s: partial(write, layer=i) for i, s in enumerate(self.writes)})

    @torch.no_grad()
    def kept(self, batch: Batch, keep: Keep, statistics: Statistics, clean: tuple[Tensor, ...] | None = None) -> Tensor:
        written = self.base(statistics)
        parts = [self.rows(layer, kept) for layer, kept in enumerate(keep)]

        def output(layer: int, x: Tensor) -> Tensor:
            source = x if clean is None else clean[layer]
            if len(keep[layer]):
                change = self.encode(layer, source)[..., keep[layer]] - statistics.mean[layer][keep[layer]]
                self.add(layer, change @ parts[layer], written)
            return self.finish(layer, written[layer].expand(*x.shape[:-1], -1), source)

        with fast_kernels(self.subject), self.computed_by(output):
            return self.subject.hidden(batch.ids, batch.mask)

    @torch.no_grad()
    def removed(self, batch: Batch, remove: Keep, statistics: Statistics) -> Tensor:
        pending: dict[int, Tensor] = {}
        parts = [self.rows(layer, gone) for layer, gone in enumerate(remove)]

        def read(x: Tensor, layer: int) -> Tensor:
            if len(remove[layer]):
                change = statistics.mean[layer][remove[layer]] - self.encode(layer, x)[..., remove[layer]]
                self.add(layer, change @ parts[layer], pending)
            return x

        def write(y: Tensor, layer: int) -> Tensor:
            if self.reads == self.writes:
                read(y, layer)
            return y + pending.pop(layer) if layer in pending else y

        with fast_kernels(self.subject), self._hooked(read, write):
            return self.subject.hidden(batch.ids, batch.mask)

    @torch.no_grad()
    def statistics(self, batches: Iterable[Batch]) -> Statistics:
        sums, fired = ([torch.zeros(n, dtype=torch.float64) for n in self.sizes] for _ in range(2))
        count = 0
        for batch in batches:
            for layer, x in enumerate(self.clean(batch)):
                values = self.encode(layer, x[batch.mask])
                sums[layer] += values.sum(0)
                fired[layer] += (values > 0).sum(0)
            count += int(batch.mask.sum())
        return Statistics(tuple((s / count).float() for s in sums), tuple((f / count).float() for f in fired))

    def base(self, statistics: Statistics) -> dict[int, Tensor]:
        """What every part at its mean writes to each layer, `[d_out]`."""
        written: dict[int, Tensor] = {}
        for layer, mean in enumerate(statistics.mean):
            self.add(layer, mean @ self.rows(layer, slice(None)), written)
        return written

    def add(self, layer: int, written: Tensor, totals: dict[int, Tensor]) -> None:
        """Add what parts of a layer wrote, `[..., n_targets · d_out]`, to the total of every layer it goes to."""
        targets = self.targets(layer)
        for target, part in zip(targets, written.chunk(len(targets), -1), strict=True):
            totals[target] = totals[target] + part if target in totals else part


class FeatureBasis(Writers):
    name = "features"

    def __init__(self, subject: Subject, dictionary: Dictionary) -> None:
        super().__init__(subject)
        config = dictionary.config
        self.dictionary, self.sizes = dictionary, (config.n_features,) * config.n_layers
        self.reads, self.writes = tuple(config.reads), tuple(config.writes)

    @property
    def replaces_mlps(self) -> bool:
        config = self.dictionary.config
        whole = config.layers == tuple(range(self.subject.n_layers))
        return whole and (config.hookpoint_in, config.hookpoint_out) == ("layers.{}.mlp_in", "layers.{}.mlp_out")

    def encode(self, layer: int, x: Tensor) -> Tensor:
        return self.dictionary.encode(layer, x).dense(self.sizes[layer])

    def rows(self, layer: int, keep: Tensor | slice) -> Tensor:
        return self.dictionary.W_dec[layer][keep]

    def targets(self, layer: int) -> list[int]:
        return [*self.dictionary.config.targets(layer)]

    def finish(self, layer: int, total: Tensor, x: Tensor) -> Tensor:
        return self.dictionary.finished(layer, total + self.dictionary.b_dec[layer], x)


class NeuronBasis(Writers):
    """Neurons of the layers that a dictionary covers, so that both speak of the same part of the subject."""

    name = "neurons"

    def __init__(self, subject: Subject, layers: tuple[int, ...]) -> None:
        super().__init__(subject)
        self.written = [subject.neuron_writes(layer) for layer in layers]
        self.sizes = tuple(len(rows) for rows, _ in self.written)
        self.reads = tuple(f"layers.{layer}.neuron" for layer in layers)
        self.writes = tuple(f"layers.{layer}.mlp_out" for layer in layers)

    def encode(self, layer: int, x: Tensor) -> Tensor:
        return x

    def rows(self, layer: int, keep: Tensor | slice) -> Tensor:
        return self.written[layer][0][keep]

    def targets(self, layer: int) -> list[int]:
        return [layer]

    def finish(self, layer: int, total: Tensor, x: Tensor) -> Tensor:
        bias = self.written[layer][1]
        return total if bias is None else total + bias
