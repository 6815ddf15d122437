"""The map of one pair: which share of the answer comes back when parts of the clean run are put into the corrupt one.

R = (P(patched) − P(corrupt)) / (P(clean) − P(corrupt)): activation patching of the outputs of attention and MLP and of
the residual stream behind a layer, at all positions of a class at once, in windows of one layer and of three.
"""

from collections.abc import Sequence

import numpy as np
import torch

from isotrace.attribution.ablation import ablated
from isotrace.attribution.maps.pair import Pair, Span
from isotrace.interventions import Attentions, MLPs, Residuals, Select

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
    where = [Select(window(layer, WINDOWS[w], n), None, sets[s]) for w, s, layer in asked]
    clean = [kind().record(subject, pair.clean)[0] for kind in COMPONENTS.values()]
    values = []
    with pair.noise.applied(subject):
        for kind, reference in zip(COMPONENTS.values(), clean, strict=True):
            given = subject, kind(), reference, pair.corrupt, pair.answer, where
            values.append(ablated(*given, complement=False, chunk=32).double().numpy())
    shape = (len(COMPONENTS), len(WINDOWS), len(sets), n)
    return (np.reshape(values, shape) - pair.values[1]) / pair.moved
