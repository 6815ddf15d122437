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

from isotrace.subjects.subject import (
    Batch,
    Subject,
    attention_replaced,
    forwards_replaced,
    mlps_computed_by,
    softmax_attention,
)


@dataclass(frozen=True)
class Sources:
    """What a frozen pass is a function of, all `[batch, tokens, d_model]`: word embeddings, position
    embeddings (None where the subject has none) and the output of every MLP."""

    words: Tensor
    positions: Tensor | None
    mlp_out: tuple[Tensor, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Sources":
        positions = None if self.positions is None else function(self.positions)
        return Sources(function(self.words), positions, tuple(function(m) for m in self.mlp_out))

    def tensors(self) -> list[Tensor]:
        return [self.words, *([] if self.positions is None else [self.positions]), *self.mlp_out]


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
        subject, seen = self.subject, {}
        word = subject.module(subject.family.word_embedding)
        outputs = {word: "words"} | {
            subject.module(subject.family.mlp_out, layer): layer for layer in range(subject.n_layers)
        }
        if subject.position_embedding is not None:
            outputs[subject.position_embedding] = "positions"

        def attend(module, query, key, value, mask, scaling):
            output, self.patterns[module] = softmax_attention(module, query, key, value, mask, scaling)
            return output, self.patterns[module]

        def measure(module, args):
            self.sigma[module] = (args[0].var(-1, unbiased=False, keepdim=True) + module.eps).sqrt()

        with ExitStack() as stack:
            stack.enter_context(attention_replaced(subject.attentions, attend))
            for norm in subject.norms.values():
                stack.callback(norm.register_forward_pre_hook(measure).remove)
            for module, name in outputs.items():

                def keep(_, args, output, name=name):
                    seen[name] = output

                stack.callback(module.register_forward_hook(keep).remove)
            mlp_in = []
            for layer in range(subject.n_layers):

                def keep_input(_, args):
                    mlp_in.append(args[0])

                first = subject.module(subject.family.mlp_in, layer)
                stack.callback(first.register_forward_pre_hook(keep_input).remove)
            final = subject.hidden(self.ids, self.mask)
        self.actual = Replay(tuple(mlp_in), final)
        shape = seen["words"].shape
        positions = seen["positions"].expand(shape) if "positions" in seen else None
        self.sources = Sources(seen["words"], positions, tuple(seen[layer] for layer in range(subject.n_layers)))

    def replay(self, sources: Sources, mlp: Callable[[int, Tensor], Tensor] | None = None) -> Replay:
        """Run with frozen attention and norms. MLP outputs come from `sources`, or from `mlp(layer, mlp_in)`
        where that is given (interventions in the frozen model)."""
        subject, rows = self.subject, len(sources.words)
        replaced: dict[nn.Module, Callable] = {}
        for norm in subject.norms.values():
            replaced[norm] = self._linear_norm(norm)
        replaced[subject.module(subject.family.word_embedding)] = lambda _: sources.words
        if subject.position_embedding is not None:
            replaced[subject.position_embedding] = lambda _: sources.positions

        def attend(module, query, key, value, mask, scaling):
            pattern = self.patterns[module]
            return (pattern @ value).transpose(1, 2), pattern

        compute = mlp or (lambda layer, _: sources.mlp_out[layer])
        with ExitStack() as stack:
            stack.enter_context(forwards_replaced(replaced))
            stack.enter_context(attention_replaced(subject.attentions, attend))
            mlp_in = stack.enter_context(mlps_computed_by(subject, compute))
            final = subject.hidden(self.ids.expand(rows, -1), self.mask.expand(rows, -1))
        return Replay(tuple(mlp_in[layer] for layer in range(subject.n_layers)), final)

    def head_map(self, position: int) -> Callable[[Tensor], Tensor]:
        """The head at `position` as an affine map `[..., d_model]` → `[..., vocabulary]`: its pointwise
        function becomes the secant gate f(z)/z and its norm's σ is fixed, both as this input has them."""
        subject, family = self.subject, self.subject.family
        dense, norm = subject.module(family.head_dense), cast(nn.LayerNorm, subject.module(family.head_norm))
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
        sigma = (f.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()

        def apply(final: Tensor) -> Tensor:
            gated = lambda x: self._normalise(x * gate, norm, sigma)  # noqa: E731
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

    def _linear_norm(self, norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
        return lambda x: self._normalise(x, norm, self.sigma[norm])

    @staticmethod
    def _normalise(x: Tensor, norm: nn.LayerNorm, sigma: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / sigma * norm.weight + norm.bias
