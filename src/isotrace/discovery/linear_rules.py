"""Rules that make a subject linear around one input, shared by RelP and CD-T (METHODS §6).

An MLP is read as linear maps → a pointwise function of what they give → a last linear map. The function has one
argument, f(z), or two in a gated MLP, f(u) · v. Nothing here needs the function itself, only its arguments and values.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from isotrace.discovery.method import Problem
from isotrace.subjects.dispatch import Site, overlaid, patterns_set
from isotrace.subjects.subject import Subject

LINEAR = (nn.Linear, Conv1D)
TOLERANCE = 1e-4


def first_maps(subject: Subject, layer: int) -> tuple[nn.Module, ...]:
    """The linear maps of a layer's MLP but for its last; their outputs side by side are the function's arguments."""
    first, last = subject.mlp(layer)
    return tuple(m for m in first.modules() if isinstance(m, LINEAR) and m is not last)


def patterns_fixed(subject: Subject, rows: int | None = None):
    """Context in which attention patterns are constants to gradients; those of the first `rows` rows, where given,
    serve all the rows that follow, `rows` at a time."""

    def fixed(module: nn.Module, own: Callable[[slice], Tensor], total: int) -> Tensor:
        pattern = own(slice(rows)).detach()
        return pattern if rows is None else pattern.repeat(total // rows, 1, 1, 1)

    return patterns_set(subject, fixed)


@torch.no_grad()
def refuse_mlps(problem: Problem) -> str | None:
    """Why the MLPs are not as the rules need them, or None. Tried on random arguments of the function: it must be
    pointwise, zero where its argument is, and, with two arguments, linear in one of them."""
    subject = problem.subject
    for layer, (size, n_arguments, scales, neurons) in _tried(subject).items():
        if n_arguments not in (size, 2 * size):
            return f"the MLP of layer {layer} is neither linear → f → linear nor gated"
        plain, some_u, some_v, scaled_u, scaled_v = neurons
        off, scale = scales[1, :, :size], scales[3, :, :size]
        near = lambda x, y: torch.allclose(x, y, rtol=TOLERANCE, atol=TOLERANCE)  # noqa: E731
        alone = n_arguments == size and near(some_u, off * plain)
        u_gates = near(some_u, off * plain) and near(scaled_v, scale * plain)
        v_gates = near(some_v, off * plain) and near(scaled_u, scale * plain)
        if not (alone or (n_arguments > size and (u_gates or v_gates))):
            return f"the MLP of layer {layer} is not pointwise between its linear maps, with f(0) = 0"
    return None


def _tried(subject: Subject) -> dict[int, tuple[int, int, Tensor, Tensor]]:
    """Of every layer: neurons, arguments of the function, what these were multiplied by `[5, 1, 2 d_ff]` (nothing;
    zeros and ones in the first, in the second half; numbers in the first, in the second half), activations
    `[5, 2, d_ff]` of the neurons."""
    generator = torch.Generator().manual_seed(0)
    sizes = [len(subject.neuron_writes(layer)[0]) for layer in range(subject.n_layers)]
    arguments = [0] * subject.n_layers
    scales = [torch.ones(5, 1, 2 * size, dtype=torch.float64) for size in sizes]
    neurons: dict[int, Tensor] = {}
    sites: list[tuple[nn.Module, Site]] = []
    for layer, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
        scale[1, :, :size] = scale[2, :, size:] = (torch.rand(size, generator=generator) < 0.5).double()
        scale[3, :, :size] = scale[4, :, size:] = torch.randn(size, generator=generator).double()

        def give(_, args, output: Tensor, layer: int = layer, scale: Tensor = scale) -> Tensor:
            start, width = arguments[layer], output.shape[-1]
            arguments[layer] += width
            drawn = torch.randn(1, 2, width, generator=generator)
            fits = arguments[layer] <= scale.shape[-1]
            return (drawn * scale[..., start : start + width]).to(output) if fits else output

        def keep(_, args, layer: int = layer) -> None:
            neurons[layer] = args[0].double().cpu()

        sites += [(module, Site(after=(give,))) for module in first_maps(subject, layer)]
        sites.append((subject.mlp(layer)[1], Site(before=(keep,))))
    ids = torch.full((5, 2), subject.pad_id, device=subject.device)
    with overlaid(sites):
        subject.hidden(ids, torch.ones_like(ids, dtype=torch.bool))
    return {layer: (sizes[layer], arguments[layer], scales[layer], neurons[layer]) for layer in neurons}
