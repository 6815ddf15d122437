"""The subject linearised on one input (METHODS §4).

1. record   one ordinary pass stores every attention pattern, every norm denominator σ and the secant gate
            f(z)/z of the head's pointwise function
2. replay   the same modules run with those constants, with embeddings and MLP outputs given from outside

In replay every hidden state and logit is an affine function of the embeddings and the MLP outputs, so
`torch.autograd.grad` through it is the exact Jacobian of that function, not an approximation at a point.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from isotrace.subjects.dispatch import (
    Site,
    forwards_replaced,
    mlps_computed_by,
    overlaid,
    patterns_frozen,
    patterns_recorded,
)
from isotrace.subjects.families import LAYER_NORM, NormKind
from isotrace.subjects.subject import Batch, Subject


@dataclass(frozen=True)
class Sources:
    """What a frozen pass is a function of, all `[batch, tokens, d]`: the outputs of `Subject.embeddings`, in their
    order (d may be smaller than d_model), and the output of every MLP."""

    embeddings: tuple[Tensor, ...]
    mlp_out: tuple[Tensor, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Sources":
        return Sources(tuple(map(function, self.embeddings)), tuple(map(function, self.mlp_out)))

    def tensors(self) -> list[Tensor]:
        return [*self.embeddings, *self.mlp_out]


@dataclass(frozen=True)
class Replay:
    """`mlp_in[l]` `[batch, tokens, d_model]`, and `final`, what the target reads: the final hidden state, or as wide as
    the layers it reads, see `Subject.hidden`."""

    mlp_in: tuple[Tensor, ...]
    final: Tensor


class FrozenSubject:
    """`subject` linearised on the single sequence of `batch` (`[1, tokens]`, no padding); `reads`: see
    `Subject.hidden`."""

    def __init__(self, subject: Subject, batch: Batch, reads: Sequence[int] = ()) -> None:
        if len(batch.ids) != 1 or not bool(batch.mask.all()):
            raise ValueError("a subject is linearised on one unpadded sequence at a time")
        subject.require_float32("a trace")
        self.subject, self.ids, self.mask, self.reads = subject, batch.ids, batch.mask, reads
        self.patterns: dict[nn.Module, Tensor] = {}
        self.sigma: dict[nn.Module, Tensor] = {}
        self._record()

    @torch.no_grad()
    def _record(self) -> None:
        subject, kind, n_layers = self.subject, self.subject.family.norm, self.subject.n_layers
        seen: dict[nn.Module, Tensor] = {}
        modules = [e.module for e in subject.embeddings] + [subject.mlp(layer)[1] for layer in range(n_layers)]

        def measure(module, args):
            self.sigma[module] = denominator(args[0], module, kind)

        def keep(module, args, output):
            seen[module] = output

        def read(module, args):
            mlp_in[module] = args[0]

        mlp_in: dict[nn.Module, Tensor] = {}
        readers = [subject.mlp(layer)[0] for layer in range(n_layers)]
        sites = [(norm, Site(before=(measure,))) for norm in subject.norms.values()]
        sites += [(module, Site(before=(read,))) for module in readers]
        sites += [(module, Site(after=(keep,))) for module in modules]
        with patterns_recorded(subject) as self.patterns, overlaid(sites):
            final = subject.hidden(self.ids, self.mask, self.reads)
        self.actual = Replay(tuple(mlp_in[module] for module in readers), final)
        n, n_tokens = len(modules) - n_layers, self.ids.shape[1]
        embeddings = tuple(seen[module].expand(1, n_tokens, -1) for module in modules[:n])
        self.sources = Sources(embeddings, tuple(seen[module] for module in modules[n:]))

    def replay(self, sources: Sources, mlp: Callable[[int, Tensor], Tensor] | None = None) -> Replay:
        """Run with frozen attention and norms. MLP outputs come from `sources`, or from `mlp(layer, mlp_in)`
        where that is given (interventions in the frozen model)."""
        subject, rows = self.subject, len(sources.embeddings[0])
        replaced: dict[nn.Module, Callable] = {}
        for norm in subject.norms.values():
            replaced[norm] = self._linear_norm(norm)
        for embedding, value in zip(subject.embeddings, sources.embeddings, strict=True):
            replaced[embedding.module] = lambda *_, value=value, **__: value
        compute = mlp or (lambda layer, _: sources.mlp_out[layer])
        frozen = patterns_frozen(subject, self.patterns)
        with forwards_replaced(replaced), frozen, mlps_computed_by(subject, compute) as mlp_in:
            final = subject.hidden(self.ids.expand(rows, -1), self.mask.expand(rows, -1), self.reads)
        return Replay(tuple(mlp_in[layer] for layer in range(subject.n_layers)), final)

    def head_map(self, position: int) -> Callable[[Tensor], Tensor]:
        """The head at `position` as an affine map `[..., d_model]` → `[..., vocabulary]`: its pointwise
        function becomes the secant gate f(z)/z and its norm's σ is fixed, both as this input has them. A head that is
        linear is itself. Raises SubjectError without a head."""
        subject, family = self.subject, self.subject.family
        if family.head_dense is None or family.head_norm is None:
            return subject.head
        dense, norm = subject.module(family.head_dense), subject.module(family.head_norm)
        stored: dict[str, Tensor] = {}

        def keep_dense(_, args, output):
            stored["z"] = output

        def keep_norm(_, args):
            stored["f"] = args[0]

        with torch.no_grad(), overlaid([(dense, Site(after=(keep_dense,))), (norm, Site(before=(keep_norm,)))]):
            subject.head(self.actual.final[:, position])
        gate, sigma = secant(stored["z"], stored["f"]), denominator(stored["f"], norm, LAYER_NORM)

        def apply(final: Tensor) -> Tensor:
            last: list[Tensor] = []

            def keep(_, args, output):
                last[:] = [output]

            gated = lambda _: with_denominator(last[0] * gate, norm, sigma, LAYER_NORM)  # noqa: E731
            with overlaid([(dense, Site(after=(keep,))), (norm, Site(forward=gated))]):
                return subject.head(final)

        return apply

    def task_map(self, pooled: Tensor) -> Callable[[Tensor], Tensor]:
        """The task head at `pooled [d_model]` as an affine map `[..., d_model]` → `[..., outputs]`, linearised as
        `head_map` is. Raises SubjectError without one."""
        task = self.subject.require_task()
        if task.dense is None:
            return task.outputs
        with torch.no_grad():
            z = task.dense(pooled)
            f = task.function(z)
            gate = secant(z, f)
            sigma = None if task.norm is None else denominator(f, task.norm, LAYER_NORM)

        def apply(rows: Tensor) -> Tensor:
            passed = cast(nn.Module, task.dense)(rows) * gate
            if task.norm is not None:
                passed = with_denominator(passed, task.norm, cast(Tensor, sigma), LAYER_NORM)
            return task.classifier(passed)

        return apply

    def _linear_norm(self, norm: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: with_denominator(x, norm, self.sigma[norm], self.subject.family.norm)


def secant(z: Tensor, f: Tensor) -> Tensor:
    """The gate f(z)/z of a pointwise function, 0 where z is."""
    return torch.where(z == 0, torch.zeros_like(z), f / torch.where(z == 0, torch.ones_like(z), z))


def denominator(x: Tensor, norm: nn.Module, kind: NormKind) -> Tensor:
    """σ `[..., 1]` of a norm that reads `x [..., d_model]`."""
    variance = x.var(-1, unbiased=False, keepdim=True) if kind.centred else x.pow(2).mean(-1, keepdim=True)
    return (variance + getattr(norm, kind.eps)).sqrt()


def scaled(x: Tensor, norm: nn.Module, sigma: Tensor, kind: NormKind) -> Tensor:
    """The norm with its denominator given and without its bias: linear in `x [..., d_model]`."""
    return (x - x.mean(-1, keepdim=True) if kind.centred else x) / sigma * cast(Tensor, norm.weight)


def with_denominator(x: Tensor, norm: nn.Module, sigma: Tensor, kind: NormKind) -> Tensor:
    """The norm with its denominator given."""
    bias = getattr(norm, "bias", None)
    return scaled(x, norm, sigma, kind) if bias is None else scaled(x, norm, sigma, kind) + bias
