"""Influential neuron paths: one node of every layer, chosen for what the path as a whole does (METHODS_BASES §9).

1. extend   layer by layer: the nodes of the path so far and all of the next layer go from their start to their value in
            equal steps, and the candidate is taken with which the joint score is highest; the best `beam` paths go on
2. score    the finished paths again, with nothing moved but their own nodes

    integral    Σ_{i∈P} (z_i − z′_i) ∫ ∂_i M, start z′: of a finished path it is M(x) − M(x with P at its reference)
    published   (Σ_{i∈P} z_i) · (Σ_{j∈P} mean slope of j), start 0: a product of sums in which signed nodes cancel, and
                no part of M

Sums run over all positions, and a path serves the whole batch. A path is a set and no ranking: nodes beside it have 0.
What an early node does through a later one of its path counts at the later one alone, since that is moved itself. So
of equal paths the one that began better is taken, and a node with an effect of its own before the start of a chain.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.discovery.gradients import gradients
from isotrace.discovery.method import Problem, Scores, method
from isotrace.interventions.components import Values

Joint = Literal["integral", "published"]
Path = tuple[int, ...]
"""The component of each layer, from the first."""
EQUAL = 1e-3
"""Of the largest score: what two may differ by and count as equal."""


def _refuse(problem: Problem) -> str | None:
    sizes = problem.components.sizes(problem.subject)
    return None if min(n for n, _ in sizes) > 1 else "a path takes one of several nodes in every layer; some have one"


@method("neuron_paths", refuse=_refuse)
def neuron_paths(problem: Problem, *, joint: Joint = "integral", n_steps: int = 20, beam: int = 5) -> Scores:
    """Each node of the path has its part of the joint score, all others 0. Raises as `best_path` does."""
    path, parts, passes = best_path(problem, joint, n_steps, beam)
    values = [torch.zeros(len(parts), 1, n).to(parts) for n, _ in problem.components.sizes(problem.subject)]
    for layer, component in enumerate(path):
        values[layer][:, 0, component] = parts[:, layer]
    return Scores(tuple(values), 1.0 + 3.0 * passes)


@torch.no_grad()
def best_path(problem: Problem, joint: Joint, n_steps: int, beam: int) -> tuple[Path, Tensor, int]:
    """(path, each node's part of the joint score `[batch, layers]`, passes with a gradient). Raises InputError for an
    unknown `joint`, and unless there are one step and one path at least."""
    if joint not in ("integral", "published"):
        raise InputError(f"joint is {joint!r}: give integral or published.")
    if min(n_steps, beam) < 1:
        raise InputError(f"n_steps is {n_steps} and beam {beam}: give at least 1 of each.")
    clean = problem.components.record(problem.subject, problem.batch)[0]
    search = _Search(problem, clean, joint, n_steps)
    paths: list[Path] = [()]
    for layer in range(len(clean)):
        found = []
        for path in paths:
            scores = search.candidates(path, layer)
            best = scores.topk(min(beam, len(scores)))
            found += [(value, (*path, c)) for value, c in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
        order = _falling([value for value, _ in found])
        paths = [found[at][1] for at in order[:beam]]
    parts = [search.parts(path) for path in paths]
    chosen = _falling([float(part.sum()) for part in parts])[0]
    return paths[chosen], parts[chosen], search.passes


def _falling(scores: list[float]) -> list[int]:
    """Places by falling score, the first of equals first."""
    equal = EQUAL * max(abs(score) for score in scores) or 1.0
    return sorted(range(len(scores)), key=lambda at: -round(scores[at] / equal))


@dataclass
class _Search:
    """`passes`: how many with a gradient it took."""

    problem: Problem
    clean: Values
    joint: Joint
    n_steps: int
    passes: int = 0

    def __post_init__(self) -> None:
        zero = self.joint == "published"
        self.start = [
            torch.zeros_like(z) if zero else r.to(z).expand_as(z)
            for z, r in zip(self.clean, self.problem.reference, strict=True)
        ]
        self.change = [z - s for z, s in zip(self.clean, self.start, strict=True)]

    def candidates(self, path: Path, layer: int) -> Tensor:
        """`[components]`: the joint score of `path` with each node of `layer`, summed over the batch."""
        slopes = self._slopes(path, layer)
        sizes, effects = self._of(path, slopes)
        own = self.change[layer], slopes[layer]
        if self.joint == "integral":
            return effects.sum() + (own[0] * own[1]).sum((0, 1, 3))
        size, slope = (each.sum((1, 3)) for each in own)
        return ((sizes.sum(1, keepdim=True) + size) * (effects.sum(1, keepdim=True) + slope)).sum(0)

    def parts(self, path: Path) -> Tensor:
        """`[batch, layers]`: what each node adds to the joint score of a finished path."""
        sizes, effects = self._of(path, self._slopes(path, None))
        return effects if self.joint == "integral" else sizes * effects.sum(1, keepdim=True)

    def _of(self, path: Path, slopes: Values) -> tuple[Tensor, Tensor]:
        """(Σ z, Σ effects or slopes) of the path's nodes, `[batch, nodes]` each."""
        none = self.clean[0].new_zeros(len(self.clean[0]), 0)
        sizes, effects = [none], [none]
        for layer, component in enumerate(path):
            change, slope = (each[layer][:, :, component] for each in (self.change, slopes))
            sizes.append(change.sum((1, 2))[:, None])
            effects.append((change * slope if self.joint == "integral" else slope).sum((1, 2))[:, None])
        return torch.cat(sizes, 1), torch.cat(effects, 1)

    def _slopes(self, path: Path, whole: int | None) -> Values:
        """Gradients averaged over the steps, with the nodes of `path` and the layer `whole` on their way: midpoints for
        the integral, and 1/m … 1 as published."""
        total: list[Tensor] = []
        for step in range(self.n_steps):
            share = (step + (0.5 if self.joint == "integral" else 1.0)) / self.n_steps

            def move(layer: int, values: Tensor, share: float = share) -> Tensor:
                there = torch.lerp(self.start[layer], self.clean[layer], share)
                if layer == whole:
                    return there
                if layer < len(path):
                    values = values.clone()
                    values[:, :, path[layer]] = there[:, :, path[layer]]
                return values

            slopes = gradients(self.problem, move)[1]
            total = [t + g for t, g in zip(total, slopes, strict=True)] if total else [*slopes]
        self.passes += self.n_steps
        return tuple(t / self.n_steps for t in total)
