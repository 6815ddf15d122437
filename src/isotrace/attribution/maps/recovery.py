"""The map of one pair: which share of the answer comes back when parts of the clean run are put into the corrupt one.

R = (P(patched) − P(corrupt)) / (P(clean) − P(corrupt)): activation patching of the outputs of attention and MLP and of
the residual stream behind a layer, at all positions of a class at once, in windows of one layer and of three.

Patches whose first layer is the same share a batch. What lies before that layer is the corrupt run, which is known, so
that its blocks do not run again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isotrace.attribution.ablation import ablated
from isotrace.attribution.maps.pair import Pair, Span
from isotrace.interventions import Attentions, MLPs, Residuals, Select
from isotrace.subjects.dispatch import forwards_replaced, watched
from isotrace.subjects.fast import fast_kernels

COMPONENTS = {"attention": Attentions, "mlp": MLPs, "residual": Residuals}
WINDOWS = (1, 3)


def window(layer: int, width: int, n_layers: int) -> tuple[int, ...]:
    """Layers of a window about `layer`, cut at either end."""
    half = width // 2
    return tuple(range(max(0, layer - half), min(n_layers, layer + half + 1)))


@torch.no_grad()
def recovery(pair: Pair, sets: Sequence[Span]) -> np.ndarray:
    """R of patching each of `sets` of positions, float64 `[components, windows, sets, layers]`."""
    subject, n = pair.subject, pair.subject.n_layers
    asked = [(w, s, layer) for w in range(len(WINDOWS)) for s in range(len(sets)) for layer in range(n)]
    values = np.full((len(COMPONENTS), len(WINDOWS), len(sets), n), np.nan)
    clean = [kind().record(subject, pair.clean)[0] for kind in COMPONENTS.values()]
    with fast_kernels(subject), pair.noise.applied(subject):
        outputs = block_outputs(pair)
        for i, (kind, reference) in enumerate(zip(COMPONENTS.values(), clean, strict=True)):
            for first in range(n):
                rows = [row for row in asked if window(row[2], WINDOWS[row[0]], n)[0] == first]
                where = [Select(window(layer, WINDOWS[w], n), None, sets[s]) for w, s, layer in rows]
                given = subject, kind(), reference, pair.corrupt, pair.answer, where
                with standing(outputs[: first + (kind is Residuals)]):
                    patched = ablated(*given, complement=False, chunk=128)
                for row, value in zip(rows, patched.tolist(), strict=True):
                    values[i, *row] = value
    return (values - pair.values[1]) / pair.moved


def block_outputs(pair: Pair) -> list[tuple[nn.Module, Any]]:
    """(block, what it gives in the corrupt run), first to last."""
    subject = pair.subject
    blocks = [subject.hookpoint(f"layers.{layer}.resid_post")[0] for layer in range(subject.n_layers)]
    found: dict[nn.Module, Any] = {}
    with watched(blocks, lambda module, _, output: found.update({module: output})):
        pair.answer.hidden(subject, pair.corrupt)
    return [(block, found[block]) for block in blocks]


@contextmanager
def standing(outputs: Sequence[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Within the context these blocks give what they gave to one sequence, to as many as they are handed."""

    def give(*given: Any, output: Any, **named: Any) -> Any:
        return copies(output, len(next(iter((*given, *named.values())))))

    with forwards_replaced({block: partial(give, output=output) for block, output in outputs}):
        yield


def copies(output: Any, n: int) -> Any:
    if isinstance(output, Tensor):
        return output.expand(n, *output.shape[1:])
    return tuple(copies(one, n) for one in output) if isinstance(output, tuple) else output
