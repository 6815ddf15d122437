"""Hookpoints with one vector for a whole sequence, `[batch, 1, d_model]`.

layers.N.pooled   mean over the real tokens of the hidden state behind layer N, of the last one behind the final
                  norm, as `Subject.hidden` counts them. A change of it is added to every real token, so that their
                  mean is what was set and nothing else of them changes
layers.N.latent   the vector that a family makes of all tokens itself, see `Latent`; N is the last layer. Only what
                  is decoded from it (`Subject.reconstructing`) reads it
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from isotrace.base.errors import SubjectError

if TYPE_CHECKING:
    from isotrace.subjects.subject import Subject

MEAN, LATENT = "pooled", "latent"
KINDS = (MEAN, LATENT)


@dataclass(frozen=True)
class Latent:
    """`module`: path of the module whose output is the latent `[batch, 1, d_model]`, which `encode(base, final, mask)`
    runs; `decode(base, latent, n_tokens)` makes tokens `[batch, n_tokens, d_model]` again, which the head `head`
    reads."""

    module: str
    head: str
    encode: Callable[[Any, Tensor, Tensor], Tensor]
    decode: Callable[[Any, Tensor, int], Tensor]


def is_pooled(hookpoints: Iterable[str]) -> bool:
    """Whether they have a row per sequence and not per token. Raises SubjectError where some have and some have not."""
    found = {name.rpartition(".")[2] in KINDS for name in hookpoints}
    if len(found) > 1:
        raise SubjectError("hookpoints with a row per token and with one per sequence do not mix: take them apart.")
    return found == {True}


def kinds_of(subject: "Subject") -> tuple[str, ...]:
    return KINDS if subject.family.latent else (MEAN,)


def module_at(subject: "Subject", name: str) -> nn.Module:
    """The module whose output is the tensor at a pooled hookpoint. Raises SubjectError where there is none."""
    last = subject.n_layers - 1
    match = re.fullmatch(rf"layers\.(\d+)\.({MEAN}|{LATENT})", name, re.ASCII)
    if match is None or int(match[1]) > last:
        raise SubjectError(f"the subject has no hookpoint {name!r}: give layers.N.{MEAN}, N below {subject.n_layers}.")
    if match[2] == MEAN:
        return subject.pools[int(match[1])]
    if (latent := subject.family.latent) is None:
        raise SubjectError(f"{subject.family.model_type} has no latent of its own: give layers.{last}.{MEAN}.")
    if int(match[1]) != last:
        raise SubjectError(f"the latent of {subject.source} stands behind the last layer: give layers.{last}.{LATENT}.")
    return subject.module(latent.module)


def usual_layers(subject: "Subject", kinds: Iterable[str]) -> tuple[int, ...]:
    """All of them, of pooled kinds the last."""
    layers = range(subject.n_layers)
    return tuple(layers[-1:] if is_pooled(kinds) else layers)


def through_mean(pool: nn.Module, mask: Tensor, state: Tensor) -> Tensor:
    """`state [batch, tokens, d_model]` with its mean over the tokens in `mask` replaced by what `pool` makes of it."""
    real = mask[..., None].to(state)
    mean = (state * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
    new = pool(mean)
    return state if new is mean else state + (new - mean) * real
