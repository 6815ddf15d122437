"""Circuit clamp: units drawn by how much they support a target, held at their largest activation (ProtoMech).

The support of a unit is its activation times the gradient of the target there, summed over tokens and averaged over
sequences. Nodes are drawn without replacement, each with a probability in proportion to its support: different seeds
give different circuits of one size. A twin holds as many units of the same layers, drawn among the active ones.
"""

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.datasets.tasks import batches
from isotrace.interventions.gradients import activations_and_slopes
from isotrace.interventions.hookpoints import Neurons
from isotrace.interventions.writers import Writers
from isotrace.steering import FeatureEdit
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.directions.units.feature_clamp import extremes
from isotrace.steering.directions.units.token_mass import token_mass
from isotrace.steering.states import BATCH_TOKENS


@direction(
    "circuit_clamp", labels="none: the positive side's sequences", gradients="yes", cost="3 · N F + 2N F",
    tuned="size, draw, value", components=Neurons, source="ProtoMech 2026",
)  # fmt: skip
def circuit_clamp(fitting: Fitting, tokens: str, size: int = 8, seed: int = 0) -> list[FeatureEdit]:
    """Units of all layers that make `tokens` likelier in positive sequences, drawn by attribution and clamped

    `size` of them; `seed` draws another circuit. Raises InputError for components wider than a number, and where fewer
    units support the target."""
    parts = fitting.components
    if not isinstance(parts, Writers):
        raise InputError(f"circuit_clamp needs features or neurons, not {parts.name}s: name components of one number.")
    support = supports(fitting, tokens)
    nodes = [(layer, i) for layer in fitting.layers for i in torch.nonzero(support[layer] > 0)[:, 0].tolist()]
    if len(nodes) < size:
        raise InputError(f"{len(nodes)} units make {tokens} likelier, fewer than {size}: give a smaller size.")
    odds = np.asarray([float(support[layer][i]) for layer, i in nodes])
    drawn = np.random.default_rng((seed, 7)).choice(len(nodes), size, replace=False, p=odds / odds.sum())
    largest, active = extremes(fitting)
    edits = []
    for layer in fitting.layers:
        units = sorted(i for at, i in (nodes[n] for n in drawn) if at == layer)
        if not units:
            continue
        enough = len({*active[layer]} - {*units}) >= len(units)
        pool = tuple({*active[layer], *units}) if enough else tuple(range(len(support[layer])))
        given = {"components": parts, "layer": layer, "pool": pool, "mode": "clamp"}
        edits.append(FeatureEdit(**given, units=tuple(units), values=largest[layer][units]))
    return edits


def supports(fitting: Fitting, tokens: str) -> dict[int, Tensor]:
    """float64 `[units]` per layer: mean over positive sequences of Σ activation · gradient of the log-odds of
    `tokens`."""
    subject, contrast = fitting.subject, fitting.contrast
    examples = sorted((contrast.examples[i] for i in contrast.positive), key=lambda e: len(e.ids))
    totals: dict[int, Tensor] = {}
    for _, batch in fitting.progress(batches(examples, BATCH_TOKENS, subject), "attributing"):
        values, slopes = activations_and_slopes(
            subject, fitting.components, batch,
            lambda final, batch=batch: token_mass(subject, batch, final, tokens).sum(),
        )  # fmt: skip
        for layer in fitting.layers:
            part = (values[layer] * slopes[layer])[..., 0].double().sum((0, 1)).cpu() / len(examples)
            totals[layer] = totals[layer] + part if layer in totals else part
    return totals
