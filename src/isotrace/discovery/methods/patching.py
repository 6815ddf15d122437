"""Activation patching: the exact effect of every node, one forward pass each, many nodes in a batch."""

import torch
from torch import Tensor

from isotrace.discovery.method import Problem, Scores, method
from isotrace.subjects.subject import Batch

BATCH_TOKENS = 4_096


def all_nodes(problem: Problem, by_position: bool) -> Tensor:
    """`[n, 3]` (layer, position, component) of every node; position −1 unless `by_position`."""
    positions = torch.arange(problem.batch.ids.shape[1]) if by_position else torch.tensor([-1])
    sizes = problem.components.sizes(problem.subject)
    return torch.cat([
        torch.cartesian_prod(torch.tensor([layer]), positions, torch.arange(n)) for layer, (n, _) in enumerate(sizes)
    ])  # fmt: skip


@torch.no_grad()
def patched_values(problem: Problem, nodes: Tensor) -> Tensor:
    """M `[n, batch]` with each of `nodes [n, 3]` by itself at its reference; padding is never patched."""
    size, width = problem.batch.ids.shape
    step = max(1, BATCH_TOKENS // (size * width))
    results = []
    for part in nodes.split(step):
        ids, mask = (t.repeat(len(part), 1) for t in (problem.batch.ids, problem.batch.mask))
        copies = Batch(ids, mask, problem.batch.sequences * len(part), problem.batch.offsets * len(part))

        def edit(layer: int, values: Tensor, part: Tensor = part) -> Tensor:
            here = torch.nonzero(part[:, 0] == layer)[:, 0].tolist()
            if not here:
                return values
            values, reference = values.clone(), problem.reference[layer].expand(size, width, *values.shape[2:])
            for place in here:
                _, position, component = part[place].tolist()
                at = slice(None) if position < 0 else position
                values[place * size : (place + 1) * size, at, component] = reference[:, at, component]
            return values

        with problem.components.edited(problem.subject, edit):
            final = problem.subject.hidden(ids, mask)
        results.append(problem.metric(copies, final).view(len(part), size))
    return torch.cat(results) if results else torch.zeros(0, size)


@method("activation_patching", exact=True)
@torch.no_grad()
def activation_patching(problem: Problem, *, by_position: bool = True, nodes: Tensor | None = None) -> Scores:
    """Of all nodes, or of `nodes [n, 3]` alone."""
    nodes = all_nodes(problem, by_position) if nodes is None else nodes
    fall = problem.value() - patched_values(problem, nodes)
    size, width = problem.batch.ids.shape
    shape = (size, width if by_position else 1)
    values = tuple(torch.full((*shape, n), float("nan")) for n, _ in problem.components.sizes(problem.subject))
    for (layer, position, component), effect in zip(nodes.tolist(), fall, strict=True):
        values[layer][:, max(position, 0), component] = effect
    return Scores(values, 1.0 + len(nodes))
