"""Interchange screening: what a node does, averaged over many pairs of real inputs (METHODS §6).

1. `equal_length_pairs`  disjoint pairs of inputs with equally many tokens, so that pairs are independent draws
2. `interchange`         in each pair every node by itself takes the value it has on the other input; exact
3. `screen`              any method on every problem, all positions of a node together: effects `[inputs, nodes]`
4. `Screening.rows`      mean, bootstrap over inputs, tests against 0 and against the other nodes

One node at a time, the node another stands in for looks idle: see `knockout`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.discovery.method import Problem, Scores, method, method_of
from isotrace.discovery.methods.patching import activation_patching, all_nodes
from isotrace.stats.bootstrap import bootstrap_weights, intervals
from isotrace.stats.permutation import sign_flip

MIN_PAIRS = 120
"""Fewer pairs leave the ranking of nodes with similar effects to chance."""


@dataclass(frozen=True)
class NodeEffect:
    """One node of a screening, position −1 being all positions.

    mean: fall of the metric, with its 95 % bootstrap interval over inputs. rank: 1 = largest mean, with the interval
    of the ranks over the same draws; `first`: share of draws in which it is the largest. p, p_others: sign-flip tests
    that the effect, and its difference to the mean of the other nodes on the same input, are 0; two-sided, corrected
    over nodes by the largest |t| of each draw.
    """

    layer: int
    position: int
    component: int
    mean: float
    mean_ci: tuple[float, float]
    rank: int
    rank_ci: tuple[float, float]
    first: float
    p: float
    p_others: float


@dataclass(frozen=True)
class Screening:
    """`nodes [n, 3]` (layer, −1, component); `effects [inputs, n]` float64, in units of the metric."""

    nodes: Tensor
    effects: np.ndarray

    def rows(self, *, seed: int, n_draws: int = 2_000) -> list[NodeEffect]:
        """Of every node, largest mean first."""
        effects, n = self.effects, len(self.effects)
        rng = np.random.default_rng(seed)
        mean = effects.mean(0)
        means = bootstrap_weights(n, n_draws, rng) @ effects / n
        ranks = ranked(means)
        (low, high), (rank_low, rank_high) = intervals(means), intervals(ranks)
        others = effects - (effects.sum(1, keepdims=True) - effects) / max(1, effects.shape[1] - 1)
        p, p_others = (sign_flip(values, rng, n_draws) for values in (effects, others))
        rank, first = ranked(mean[None])[0], (ranks == 1).mean(0)
        places = [tuple(map(int, node)) for node in self.nodes.tolist()]
        return [
            NodeEffect(
                layer=places[j][0],
                position=places[j][1],
                component=places[j][2],
                mean=float(mean[j]),
                mean_ci=(float(low[j]), float(high[j])),
                rank=int(rank[j]),
                rank_ci=(float(rank_low[j]), float(rank_high[j])),
                first=float(first[j]),
                p=float(p[j]),
                p_others=float(p_others[j]),
            )
            for j in np.argsort(rank).tolist()
        ]


def ranked(means: np.ndarray) -> np.ndarray:
    """Rank of every column within its row, 1 = largest; ties in the order of columns."""
    return (-means).argsort(1, kind="stable").argsort(1, kind="stable") + 1


def equal_length_pairs(lengths: Sequence[int], n: int, seed: int) -> list[tuple[int, int]]:
    """`n` disjoint pairs of indices into `lengths` (tokens of each input), equal in length, drawn at random.

    Raises InputError where the corpus has fewer."""
    rng = np.random.default_rng(seed)
    waiting: dict[int, int] = {}
    pairs: list[tuple[int, int]] = []
    for index in rng.permutation(len(lengths)).tolist():
        if (other := waiting.pop(lengths[index], None)) is None:
            waiting[lengths[index]] = index
        else:
            pairs.append((other, index))
        if len(pairs) == n:
            return pairs
    raise InputError(f"only {len(pairs)} of {n} pairs of equal length among {len(lengths)} inputs: give more inputs.")


def _needs_corrupt(problem: Problem) -> str | None:
    return None if problem.corrupt else "the problem has no second input to take activations from (Problem.interchange)"


@method("interchange", exact=True, refuse=_needs_corrupt)
def interchange(problem: Problem, *, by_position: bool = False, nodes: Tensor | None = None) -> Scores:
    """Activation patching from another real input; a node is a component at all positions unless `by_position`, for
    what stands at one place of two inputs has little in common."""
    return activation_patching(problem, by_position=by_position, nodes=nodes)


def screen(problems: Iterable[Problem], name: str, **settings) -> Screening:
    """Method `name` on every problem. Raises as the method does, and InputError for no problem."""
    nodes, effects = torch.zeros(0, 3), []
    for problem in problems:
        nodes = all_nodes(problem, by_position=False)
        scores: Scores = method_of(name)(problem, **settings)
        effects.append(torch.cat(scores.over_positions(), 1).detach().double().cpu())
    if not effects:
        raise InputError("nothing to screen: give at least one problem.")
    return Screening(nodes, torch.cat(effects).numpy())


def interchange_screening(problems: Sequence[Problem], *, minimum: int = MIN_PAIRS) -> Screening:
    """Of all components, over at least `minimum` pairs: raises InputError below that."""
    n = sum(len(problem.batch.ids) for problem in problems)
    if n < minimum:
        raise InputError(f"interchange screening got {n} pairs: give at least {minimum}, or lower `minimum`.")
    return screen(problems, "interchange")
