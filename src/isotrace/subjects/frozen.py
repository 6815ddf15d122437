"""The subject linearised on one input (METHODS §4).

1. record   one ordinary pass stores every attention pattern, every norm denominator σ and the secant gate
            f(z)/z of the head's pointwise function
2. replay   the same modules run with those constants, with embeddings and MLP outputs given from outside

In replay every hidden state and logit is an affine function of the embeddings and the MLP outputs, so
`torch.autograd.grad` through it is the exact Jacobian of that function, not an approximation at a point.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from isotrace.subjects.attention import forwards_replaced, patterns_frozen, patterns_recorded
from isotrace.subjects.families import LAYER_NORM, NormKind
from isotrace.subjects.hooks import mlps_computed_by
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
    """`mlp_in[l]` and `final`, each `[batch, tokens, d_model]`."""

    mlp_in: tuple[Tensor, ...]
    final: Tensor


class FrozenSubject:
    """`subject` linearised on the single sequence of `batch` (`[1, tokens]`, no padding)."""

    def __init__(self, subject: Subject, batch: Batch) -> None:
        if len(batch.ids) != 1 or not bool(batch.mask.all()):
            raise ValueError("a subject is linearised on one unpadded sequence at a time")
        self.subject, self.ids, self.mask = subject, batch.ids, batch.mask
        self.patterns: dict[nn.Module, Tensor] = {}
        self.sigma: dict[nn.Module, Tensor] = {}
        self._record()

    @torch.no_grad()
    def _record(self) -> None:
        subject, kind, n_layers = self.subject, self.subject.family.norm, self.subject.n_layers
        seen: dict[int, Tensor] = {}
        modules = [e.module for e in subject.embeddings] + [subject.mlp(layer)[1] for layer in range(n_layers)]

        def measure(module, args):
            self.sigma[module] = denominator(args[0], module, kind)

        with ExitStack() as stack:
            self.patterns = stack.enter_context(patterns_recorded(subject))
            for norm in subject.norms.values():
                stack.callback(norm.register_forward_pre_hook(measure).remove)
            for index, module in enumerate(modules):

                def keep(_, args, output, index=index):
                    seen[index] = output

                stack.callback(module.register_forward_hook(keep).remove)
            mlp_in: dict[int, Tensor] = {}
            for layer in range(n_layers):

                def read(_, args, layer=layer):
                    mlp_in[layer] = args[0]

                stack.callback(subject.mlp(layer)[0].register_forward_pre_hook(read).remove)
            final = subject.hidden(self.ids, self.mask)
        self.actual = Replay(tuple(mlp_in[layer] for layer in range(n_layers)), final)
        n, n_tokens = len(modules) - n_layers, self.ids.shape[1]
        embeddings = tuple(seen[index].expand(1, n_tokens, -1) for index in range(n))
        self.sources = Sources(embeddings, tuple(seen[n + layer] for layer in range(n_layers)))

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
        with ExitStack() as stack:
            stack.enter_context(forwards_replaced(replaced))
            stack.enter_context(patterns_frozen(subject, self.patterns))
            mlp_in = stack.enter_context(mlps_computed_by(subject, compute))
            final = subject.hidden(self.ids.expand(rows, -1), self.mask.expand(rows, -1))
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

        with torch.no_grad(), ExitStack() as stack:
            stack.callback(dense.register_forward_hook(keep_dense).remove)
            stack.callback(norm.register_forward_pre_hook(keep_norm).remove)
            subject.head(self.actual.final[:, position])
        z, f = stored["z"], stored["f"]
        gate = torch.where(z == 0, torch.zeros_like(z), f / torch.where(z == 0, torch.ones_like(z), z))
        sigma = denominator(f, norm, LAYER_NORM)

        def apply(final: Tensor) -> Tensor:
            gated = lambda x: with_denominator(x * gate, norm, sigma, LAYER_NORM)  # noqa: E731
            with forwards_replaced({norm: lambda _: gated(last[0])}):
                last: list[Tensor] = []

                def keep(_, args, output):
                    last[:] = [output]

                handle = dense.register_forward_hook(keep)
                try:
                    return subject.head(final)
                finally:
                    handle.remove()

        return apply

    def _linear_norm(self, norm: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: with_denominator(x, norm, self.sigma[norm], self.subject.family.norm)


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
