"""How attention is computed, and how its patterns are recorded and held fixed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from isotrace.subjects.subject import Subject

AttentionFunction = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor | None]]
ATTENTION = "isotrace"


def softmax_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """(output `[batch, query, heads, d_head]`, pattern `[batch, heads, query, key]`)."""
    scores = query @ key.transpose(2, 3) * scaling
    pattern = (scores if mask is None else scores + mask).softmax(-1)
    return (pattern @ value).transpose(1, 2), pattern


def _attention(module: nn.Module, query, key, value, attention_mask, scaling=None, position_bias=None, **kwargs):
    function: AttentionFunction = getattr(module, "isotrace_attention", softmax_attention)
    if key.shape[1] != query.shape[1]:  # each key and value head serves several query heads
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    if position_bias is not None:
        attention_mask = position_bias if attention_mask is None else position_bias + attention_mask
    return function(module, query, key, value, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, eager_mask)


@contextmanager
def forwards_replaced(replacements: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within the context each module computes the given function instead of its own forward."""
    try:
        for module, function in replacements.items():
            module.forward = function
        yield
    finally:
        for module in replacements:
            module.__dict__.pop("forward", None)


@contextmanager
def attention_replaced(modules: Sequence[nn.Module], function: AttentionFunction) -> Iterator[None]:
    """Within the context the attention modules call `function` once queries, keys and values are made, keys and
    values repeated for every query head."""
    try:
        for module in modules:
            object.__setattr__(module, "isotrace_attention", function)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("isotrace_attention", None)


@contextmanager
def patterns_recorded(subject: "Subject") -> Iterator[dict[nn.Module, Tensor]]:
    """Yields the pattern `[batch, heads, query, key]` of every attention module, filled as the subject runs."""
    patterns: dict[nn.Module, Tensor] = {}
    if subject.family.pattern == "function":

        def attend(module, query, key, value, mask, scaling):
            output, patterns[module] = softmax_attention(module, query, key, value, mask, scaling)
            return output, patterns[module]

        with attention_replaced(subject.attentions, attend):
            yield patterns
        return

    def keep(module, args):
        patterns[module] = args[0]

    with ExitStack() as stack:
        for module in subject.attentions:
            stack.callback(module.register_forward_pre_hook(keep).remove)
        yield patterns


@contextmanager
def patterns_frozen(subject: "Subject", patterns: Mapping[nn.Module, Tensor]) -> Iterator[None]:
    """Within the context every attention module uses its pattern in `patterns` `[1, heads, query, key]`."""
    if subject.family.pattern == "function":

        def attend(module, query, key, value, mask, scaling):
            pattern = patterns[module]
            return (pattern @ value).transpose(1, 2), pattern

        with attention_replaced(subject.attentions, attend):
            yield
        return

    def stored(own: Tensor, pattern: Tensor) -> Tensor:
        return pattern.expand_as(own).contiguous()

    replaced = {module: partial(stored, pattern=patterns[module]) for module in subject.attentions}
    with forwards_replaced(replaced):
        yield
