"""Knockout cascade: remove nodes one after the other and watch what the rest then do (METHODS §6).

A node whose effect rises when another is gone stood by for it (backup, self-repair); one whose effect vanishes acted
through it, or fed it. Single patches cannot tell the two from an idle node.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.discovery.method import Problem
from isotrace.discovery.methods.patching import patched_values
from isotrace.interventions.components import Components, Edit, Layers, Values
from isotrace.stats.bootstrap import bootstrap_weights, interval
from isotrace.subjects.subject import Subject


@dataclass(frozen=True, eq=False)
class Removed(Components):
    """`mediator`, with `nodes [n, 3]` held at `reference` before anything else is done: every method works on what is
    left of the subject. Nodes of position −1 are held at all positions."""

    name: ClassVar[str] = "removed"
    components: Components
    nodes: Tensor
    reference: Values

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        return self.components.sizes(subject)

    def edited(self, subject: Subject, edit: Edit, layers: Layers = None) -> AbstractContextManager[None]:
        return self.components.edited(subject, lambda layer, values: edit(layer, self._held(layer, values)))

    def _held(self, layer: int, values: Tensor) -> Tensor:
        here = self.nodes[self.nodes[:, 0] == layer]
        if not len(here):
            return values
        values, reference = values.clone(), self.reference[layer]
        if reference.dim() == values.dim() and len(reference) > 1:  # methods run several copies of the batch at once
            reference = reference.repeat(len(values) // len(reference), 1, 1, 1)
        reference = reference.expand_as(values)
        for _, position, component in here.tolist():
            at = slice(None) if position < 0 else position
            values[:, at, component] = reference[:, at, component]
        return values


@dataclass(frozen=True)
class Change:
    """What a watched node does once the first `step` nodes of the order are gone.

    alone: its mean effect on the intact subject. effect: its mean effect now. change: the mean of their difference,
    each with a 95 % bootstrap interval over inputs. verdict: `rises` and `falls` where the interval of `change` is
    above or below 0; `vanishes` if it falls, had an interval above 0 and now has one that reaches 0.
    """

    step: int
    node: tuple[int, int, int]
    alone: float
    alone_ci: tuple[float, float]
    effect: float
    effect_ci: tuple[float, float]
    change: float
    change_ci: tuple[float, float]
    verdict: Literal["rises", "falls", "vanishes", "same"]


@dataclass(frozen=True)
class Cascade:
    """`order [k, 3]`; `watched [m, 3]`; `metric [k + 1, inputs]` and `effects [k + 1, inputs, m]`, float64, after 0 … k
    nodes are gone; the effect of a node that is gone is NaN."""

    order: Tensor
    watched: Tensor
    metric: np.ndarray
    effects: np.ndarray

    def changes(self, *, seed: int, n_draws: int = 2_000) -> list[Change]:
        """Of every watched node at every step from 1 on, as long as it is not itself gone."""
        n = self.metric.shape[1]
        weights = bootstrap_weights(n, n_draws, seed) / n
        found = []
        for step in range(1, len(self.effects)):
            for j, node in enumerate(self.watched.tolist()):
                alone, now = self.effects[0, :, j], self.effects[step, :, j]
                if np.isnan(now).any():
                    continue
                (before, before_ci), (after, now_ci), (moved, moved_ci) = (
                    (float(x.mean()), interval(weights @ x)) for x in (alone, now, now - alone)
                )
                verdict = _verdict(before_ci, now_ci, moved_ci)
                place = (node[0], node[1], node[2])
                found.append(Change(step, place, before, before_ci, after, now_ci, moved, moved_ci, verdict))
        return found


def _verdict(
    alone: tuple[float, float], now: tuple[float, float], change: tuple[float, float]
) -> Literal["rises", "falls", "vanishes", "same"]:
    if change[0] > 0:
        return "rises"
    if change[1] < 0:
        return "vanishes" if alone[0] > 0 and now[0] <= 0 else "falls"
    return "same"


@torch.no_grad()
def knockout_cascade(problems: Sequence[Problem], order: Tensor, watched: Tensor) -> Cascade:
    """Patch the nodes of `order [k, 3]` to the reference of each problem, one more at every step; at each measure the
    metric and the effect of every node of `watched [m, 3]` by itself. Exact: (k + 1)(m + 1) forward passes per problem.

    Raises InputError for no problem, or where the order names a node twice."""
    if not problems:
        raise InputError("nothing to measure the cascade on: give at least one problem.")
    if len(order.unique(dim=0)) != len(order):
        raise InputError("the order removes a node twice: name each node once.")
    metric, effects = [], []
    for step in range(len(order) + 1):
        gone = order[:step]
        values, falls = [], []
        for problem in problems:
            left = replace(problem, components=Removed(problem.components, gone, problem.reference))
            values.append(left.value().double())
            falls.append((values[-1] - patched_values(left, watched).double()).T)
        metric.append(torch.cat(values).cpu().numpy())
        fall = torch.cat(falls).cpu().numpy()
        fall[:, (watched[:, None] == gone[None]).all(-1).any(1).numpy()] = np.nan
        effects.append(fall)
    return Cascade(order, watched, np.stack(metric), np.stack(effects))
