"""Edits of a subject's forward pass, as contexts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from isotrace.subjects.attention import forwards_replaced

if TYPE_CHECKING:
    from isotrace.subjects.subject import Subject


@contextmanager
def hookpoints_edited(subject: "Subject", edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within the context the tensor at each named hookpoint, `[batch, tokens, d]`, is replaced by the
    function's result; all that follows is computed from it, differentiably. Raises SubjectError, see
    `Subject.hookpoint`. Editing `mlp_in` changes what the MLP reads, never the stream that passes it by."""
    found = [(*subject.hookpoint(name), function) for name, function in edits.items()]
    with ExitStack() as stack:
        for module, side, function in found:
            if side == "input":
                hook = lambda _, args, function=function: (function(args[0]), *args[1:])  # noqa: E731
                stack.callback(module.register_forward_pre_hook(hook).remove)
            else:

                def leave(_, args, output, function=function):
                    # some blocks return more than the stream
                    return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)

                stack.callback(module.register_forward_hook(leave).remove)
        yield


@contextmanager
def mlps_computed_by(subject: "Subject", function: Callable[[int, Tensor], Tensor]) -> Iterator[dict[int, Tensor]]:
    """Within the context `function(layer, mlp_in)` computes every MLP; the subject's own MLPs do not run.

    Yields the MLP inputs by layer, filled as the subject runs.
    """
    inputs: dict[int, Tensor] = {}
    replaced: dict[nn.Module, Callable[..., Any]] = {}
    for layer in range(subject.n_layers):
        first, last = subject.mlp(layer)
        whole = any(module is last for module in first.modules())

        def enter(x: Tensor, layer: int = layer, last: nn.Module | None = last if whole else None) -> Tensor:
            inputs[layer] = x
            return x if last is None else last(x)

        def leave(_: Tensor, layer: int = layer) -> Tensor:
            return function(layer, inputs[layer])

        replaced[first], replaced[last] = enter, leave
    with forwards_replaced(replaced):
        yield inputs
