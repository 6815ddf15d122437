"""What reads a hookpoint: the linear maps behind it, and the space that they see (METHODS §6, illusion check)."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from isotrace.base.errors import SubjectError
from isotrace.discovery.linear_rules import LINEAR, first_maps
from isotrace.subjects.dispatch import hookpoints_edited, watched
from isotrace.subjects.subject import Subject

TOLERANCE = 1e-5  # a direction is read if its singular value is above this share of the largest; weights are float32


def reading_maps(subject: Subject, site: str, readout: Tensor | None = None) -> Tensor:
    """`[d, m]`: the linear maps that read the hookpoint, side by side.

    neuron and head_out are read by one map, mlp_in by the first of its MLP. The stream is read by the queries, keys,
    values and MLPs behind the hookpoint, through the norms on the way with their denominators left out, and, as the
    final hidden state, by `readout` (all of it without). Raises SubjectError for a hookpoint that the subject does not
    have, and for the streams of an encoder–decoder.
    """
    module, _ = subject.hookpoint(site)
    _, layer, kind = site.split(".")
    if kind in ("neuron", "head_out"):
        return _matrix(module)
    if kind == "mlp_in":
        return torch.cat([_matrix(m) for m in first_maps(subject, int(layer))], 1)
    if len(subject.stack_sizes) > 1:
        raise SubjectError(f"what reads the streams of an encoder–decoder such as {subject.source} is not listed here.")
    return _readers_of_the_stream(subject, site, readout)


def _matrix(module: nn.Module) -> Tensor:
    """`[d_in, d_out]`: transformers' Conv1D holds the transpose of what nn.Linear does."""
    weight = cast(Tensor, module.weight)
    return weight.T if isinstance(module, nn.Linear) else weight


@torch.no_grad()
def _readers_of_the_stream(subject: Subject, site: str, readout: Tensor | None) -> Tensor:
    """One pass tells which norm and which map is given which tensor."""
    blocks = [subject.hookpoint(f"layers.{layer}.resid_post")[0] for layer in range(subject.n_layers)]
    norms = set(subject.norms.values())
    linear = {m for block in blocks for m in block.modules() if isinstance(m, LINEAR)}
    events: list[tuple[nn.Module | None, Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        events.append((module, args[0], output[0] if isinstance(output, tuple) else output))

    def mark(x: Tensor) -> Tensor:
        events.append((None, x, x))
        return x

    with watched([*{*blocks, *norms, *linear}], note), hookpoints_edited(subject, {site: mark}):
        ids = torch.full((1, 2), subject.pad_id, device=subject.device)
        subject.hidden(ids, torch.ones_like(ids, dtype=torch.bool))
    normed = {id(y) for module, _, y in events if module in norms}
    on_stream = id(next(y for module, _, y in events if module is blocks[0])) in normed  # post-norm blocks
    start = next(i for i, (module, _, _) in enumerate(events) if module is None)
    identity = torch.eye(subject.d_model)
    stream = latest = identity
    given, found = {id(events[start][2]): identity}, []
    for module, x, y in events[start + 1 :]:
        if module in norms:
            weight = cast(Tensor, cast(nn.Module, module).weight)
            centred = stream - stream.mean(1, keepdim=True) if subject.family.norm.centred else stream
            given[id(y)] = latest = centred * weight
            stream = latest if on_stream else stream
        elif module in linear and id(x) in given:
            found.append(given[id(x)] @ _matrix(cast(nn.Module, module)))
    # the last norm is that before the final hidden state
    return torch.cat([*found, latest if readout is None else latest @ readout], 1)


@torch.no_grad()
def row_space(subject: Subject, site: str, readout: Tensor | None = None) -> Tensor:
    """Orthonormal basis `[d, rank]` float64 of what is read at a hookpoint, see `reading_maps` and TOLERANCE."""
    maps = reading_maps(subject, site, readout).double()
    if maps.shape[1] > len(maps):  # the same left singular vectors, of a square matrix
        maps = torch.linalg.qr(maps.T, mode="r").R.T
    left, singular, _ = torch.linalg.svd(maps, full_matrices=False)
    return left[:, singular > TOLERANCE * singular[0]]
