"""The one place where a pass of a subject is changed.

A module that somebody wants to change has a `Dispatched` in place of its own forward. At every call it looks in a
context variable for its `Site`: edits of its input, something else that computes it, edits of its output, and, for
attention, functions around the softmax. Without a site it runs as ever. Nothing is ever written to the model again, so
contexts nest, threads do not see each other's, and an exception leaves nothing behind.

Nested contexts compose: the inner one runs on the subject as the outer one has changed it. A `forward` therefore
hides the edits that outer contexts make of that output; a `kernel` computes what the module itself computes, only
faster, hides nothing, and steps aside where something else computes the module.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from isotrace.subjects.subject import Subject

ATTENTION = "isotrace"
Before = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]
"""(module, its positional arguments) → those to go on with; None = as they are."""
After = Callable[[nn.Module, tuple[Any, ...], Any], Any]
"""(module, its arguments, its output) → the output to go on with; None = as it is."""
AttentionFunction = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor | None]]
"""(module, query, key, value, mask, scaling) → (output `[batch, query, heads, d_head]`, pattern or None); keys and
values are repeated for every query head."""
Around = Callable[..., tuple[Tensor, Tensor | None]]
"""The same with the attention function beneath as its first argument."""


@dataclass(frozen=True)
class Site:
    """What happens at one module. `fresh`: the `forward` does not read its arguments, so that what outer contexts
    make of them is not called either. `narrow`: the dtype of a subject below float32; edits see float32, and what they
    leave is rounded to it behind the last of them."""

    before: tuple[Before, ...] = ()
    forward: Callable[..., Any] | None = None
    kernel: Callable[..., Any] | None = None
    after: tuple[After, ...] = ()
    attention: tuple[Around, ...] = ()
    fused: AttentionFunction | None = None
    fresh: bool = False
    narrow: torch.dtype | None = None

    def under(self, inner: "Site") -> "Site":
        return Site(
            inner.before if inner.fresh else self.before + inner.before,
            inner.forward or self.forward,
            inner.kernel or self.kernel,
            inner.after if inner.forward else self.after + inner.after,
            self.attention + inner.attention,
            inner.fused or self.fused,
            narrow=inner.narrow or self.narrow,
        )


_SITES: ContextVar[Mapping[nn.Module, Site]] = ContextVar("isotrace_sites", default=MappingProxyType({}))


class Dispatched:
    """In place of `module.forward`."""

    __slots__ = ("module", "own")

    def __init__(self, module: nn.Module) -> None:
        self.module, self.own = module, module.__dict__.get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        site = _SITES.get().get(module)
        if site is None:
            return type(module).forward(module, *args, **kwargs) if self.own is None else self.own(*args, **kwargs)
        args = _as(args, torch.float32 if site.before and site.narrow else None)
        for edit in site.before:
            args = edit(module, args) or args
        args = _as(args, site.narrow)
        compute = site.forward or site.kernel or self.own or partial(type(module).forward, module)
        output = compute(*args, **kwargs)
        output = _as(output, torch.float32 if site.after and site.narrow else None)
        for change in site.after:
            new = change(module, args, output)
            output = output if new is None else new
        return _as(output, site.narrow)


def _as(given: Any, dtype: torch.dtype | None) -> Any:
    """A tensor, or the first of several, in `dtype`, where it holds floats; None = as it is."""
    if dtype is None or given is None or (isinstance(given, tuple) and not given):
        return given
    if isinstance(given, tuple):
        return (_as(given[0], dtype), *given[1:])
    return given.to(dtype) if given.is_floating_point() else given


def install(modules: Iterable[nn.Module]) -> None:
    """Make `modules` look for their sites; once is enough, and done again does nothing."""
    for module in modules:
        if type(module.__dict__.get("forward")) is not Dispatched:
            module.forward = Dispatched(module)


def is_edited(module: nn.Module) -> bool:
    """Whether something is to happen at it, here and now."""
    return module in _SITES.get()


@contextmanager
def overlaid(sites: Iterable[tuple[nn.Module, Site]]) -> Iterator[None]:
    """Within the context, in this thread, `sites` apply on top of those of the contexts around it."""
    found = dict(_SITES.get())
    for module, site in sites:
        install((module,))
        found[module] = found[module].under(site) if module in found else site
    token = _SITES.set(found)
    try:
        yield
    finally:
        _SITES.reset(token)


def softmax_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """(output `[batch, query, heads, d_head]`, pattern `[batch, heads, query, key]`)."""
    scores = query @ key.transpose(2, 3) * scaling
    pattern = (scores if mask is None else scores + mask).softmax(-1)
    return (pattern @ value).transpose(1, 2), pattern


def _attention(module: nn.Module, query, key, value, attention_mask, scaling=None, position_bias=None, **kwargs):
    site = _SITES.get().get(module)
    function: AttentionFunction = softmax_attention
    if site is not None:  # a fused kernel makes no pattern for anybody to see
        function = site.fused or function if not site.attention else function
        for around in site.attention:
            function = partial(around, function)
    if key.shape[1] != query.shape[1]:  # each key and value head serves several query heads
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    if position_bias is not None:
        attention_mask = position_bias if attention_mask is None else position_bias + attention_mask
    return function(module, query, key, value, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, eager_mask)


def forwards_replaced(replacements: Mapping[nn.Module, Callable[..., Any]]):
    """Context in which each module computes the given function instead of its own forward."""
    return overlaid((module, Site(forward=function)) for module, function in replacements.items())


def hookpoints_edited(subject: "Subject", edits: Mapping[str, Callable[[Tensor], Tensor]]):
    """Context in which the tensor at each named hookpoint, `[batch, tokens, d]`, is replaced by the function's result;
    all that follows is computed from it, differentiably. Raises SubjectError, see `Subject.hookpoint`. Editing `mlp_in`
    changes what the MLP reads, never the stream that passes it by. Pooled hookpoints have one token, see `pooled`."""
    sites, narrow = [], subject.narrow
    for name, function in edits.items():
        module, side = subject.hookpoint(name)
        if side == "input":
            enter = lambda _, args, function=function: (function(args[0]), *args[1:])  # noqa: E731
            sites.append((module, Site(before=(enter,), narrow=narrow)))
        else:

            def leave(_, args, output, function=function):
                # some blocks return more than the stream
                return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)

            sites.append((module, Site(after=(leave,), narrow=narrow)))
    return overlaid(sites)


@contextmanager
def mlps_computed_by(subject: "Subject", function: Callable[[int, Tensor], Tensor]) -> Iterator[dict[int, Tensor]]:
    """Within the context `function(layer, mlp_in)` computes every MLP; the subject's own MLPs do not run.

    Yields the MLP inputs by layer, filled as the subject runs.
    """
    inputs: dict[int, Tensor] = {}
    sites: list[tuple[nn.Module, Site]] = []
    for layer in range(subject.n_layers):
        first, last = subject.mlp(layer)
        whole = any(module is last for module in first.modules())

        def enter(x: Tensor, layer: int = layer, last: nn.Module | None = last if whole else None) -> Tensor:
            inputs[layer] = x
            return x if last is None else last(x)

        def leave(_: Tensor, layer: int = layer) -> Tensor:
            return function(layer, inputs[layer])

        sites += [(first, Site(forward=enter)), (last, Site(forward=leave, fresh=True))]
    with overlaid(sites):
        yield inputs


@contextmanager
def patterns_recorded(subject: "Subject") -> Iterator[dict[nn.Module, Tensor]]:
    """Yields the pattern `[batch, heads, query, key]` of every attention module, filled as the subject runs."""
    patterns: dict[nn.Module, Tensor] = {}

    def attend(beneath: AttentionFunction, module: nn.Module, *given):
        output, pattern = beneath(module, *given)
        assert pattern is not None
        patterns[module] = pattern
        return output, pattern

    def keep(module: nn.Module, args: tuple[Tensor]) -> None:
        patterns[module] = args[0]

    site = Site(attention=(attend,)) if subject.family.pattern == "function" else Site(before=(keep,))
    with overlaid((module, site) for module in subject.attentions):
        yield patterns


def patterns_set(subject: "Subject", pattern_of: Callable[..., Tensor]):
    """Context in which `pattern_of(module, own)` is the pattern that an attention module applies to its values.
    `own()` gives that of softmax `[batch, heads, query, key]`, of some rows where a slice is given; in families
    whose pattern passes a dropout module it is there already."""

    def attend(beneath: AttentionFunction, module: nn.Module, query, key, value, mask, scaling):
        def own(rows: slice = slice(None)) -> Tensor:
            part = None if mask is None else mask[rows] if len(mask) > 1 else mask
            pattern = beneath(module, query[rows], key[rows], value[rows, ..., :0], part, scaling)[1]
            assert pattern is not None
            return pattern

        pattern = pattern_of(module, own, len(value))
        return (pattern @ value).transpose(1, 2), pattern

    def passing(found: Tensor, module: nn.Module) -> Tensor:
        return pattern_of(module, lambda rows=slice(None): found[rows], len(found)).expand_as(found).contiguous()

    if subject.family.pattern == "function":
        sites = [(module, Site(attention=(attend,))) for module in subject.attentions]
    else:
        sites = [(module, Site(forward=partial(passing, module=module))) for module in subject.attentions]
    return overlaid(sites)


def patterns_frozen(subject: "Subject", patterns: Mapping[nn.Module, Tensor]):
    """Context in which every attention module uses its pattern in `patterns` `[1, heads, query, key]`."""
    return patterns_set(subject, lambda module, own, rows: patterns[module])


def watched(modules: Sequence[nn.Module], see: After):
    """Context in which `see(module, args, output)` is told of every call; what it returns is dropped."""

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        see(module, args, output)

    return overlaid((module, Site(after=(after,))) for module in modules)
