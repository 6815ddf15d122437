"""Readouts as directions: the weight of a linear probe where it reads, and its gradient at earlier layers.

A probe finds what tells the sides apart best, which need not be what the subject uses; its scores are no judge of what
it steers. Its weight w is a filter: it also points at what cancels noise, and away from what varies. The pattern that
it reads is Σ w, Σ the covariance of the states (Haufe et al. 2014, eq. 6).
"""

from typing import Literal, get_args

import numpy as np
import torch
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.datasets.tasks import batches
from isotrace.interventions.gradients import activations_and_slopes
from isotrace.probing.linear import fitted, searched
from isotrace.probing.states import BATCH_TOKENS, pooled_states
from isotrace.steering import AddEdit
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.states import How
from isotrace.subjects.probe import pooling_weights

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
Form = Literal["weight", "pattern"]


@direction(
    "probe", labels="binary or numbers", cost="2N F", tuned="layers", source="Alain and Bengio 2016; Li et al. 2023",
)  # fmt: skip
def probe(
    fitting: Fitting, how: How | None = None, strength: float | None = None, folds: int = 5, form: Form = "weight"
) -> list[AddEdit]:  # fmt: skip
    """The weight of a logistic (classes) or ridge (numbers) probe of each layer

    `form`: `pattern` turns the weight into what the probe reads. `strength`: its C or alpha; by default that which
    predicts held-out groups best, of STRENGTHS. Raises InputError for too few groups to hold out, and for confounds
    that are held by weights."""
    states, lengths = fitting.states(how), fitting.lengths
    return [
        AddEdit(
            components=fitting.components, layer=layer, scale=lengths[layer],
            direction=fitting.shaped(layer, readout(fitting, x.numpy(), strength, folds, form)),
        )
        for layer, x in sorted(states.items())
    ]  # fmt: skip


@direction(
    "gradient", labels="binary or numbers", gradients="yes", cost="2N F + 3·2N F", tuned="layers",
    source="Simonyan et al. 2014; Dathathri et al. 2020 (PPLM)",
)  # fmt: skip
def gradient(
    fitting: Fitting, strength: float | None = None, folds: int = 5, form: Form = "weight"
) -> list[AddEdit]:  # fmt: skip
    """The mean gradient, at each layer, of a probe of the final hidden state

    Of all tokens of a sequence together, over all sequences. In the form `pattern` it is that of what the probe reads,
    and multiplied by the covariance of the states at the layer, so that nothing is left of it along what does not vary
    there. Arguments and errors as of `probe`."""
    subject, examples = fitting.subject, fitting.contrast.examples
    weight = readout(fitting, pooled_states(subject, examples, (subject.n_layers,), "mean"), strength, folds, form)

    def value(final: Tensor, pooling: Tensor) -> Tensor:
        return ((final * pooling[..., None].to(final)).sum(1) @ weight.to(final)).sum()

    totals: dict[int, Tensor] = {}
    for _, batch in fitting.progress(batches(examples, BATCH_TOKENS, subject), "gradients"):
        pooling = pooling_weights(subject, batch)
        _, slopes = activations_and_slopes(
            subject, fitting.components, batch, lambda final, pooling=pooling: value(final, pooling)
        )
        for layer in fitting.layers:
            part = slopes[layer].flatten(-2).double().sum((0, 1)).cpu()
            totals[layer] = totals[layer] + part if layer in totals else part
    if form == "pattern":
        states = fitting.states("mean")
        totals = {layer: _covaried(states[layer], slope) for layer, slope in totals.items()}
    return [
        AddEdit(
            components=fitting.components, layer=layer, direction=fitting.shaped(layer, totals[layer]),
            scale=fitting.lengths[layer],
        )
        for layer in fitting.layers
    ]  # fmt: skip


def _covaried(x: Tensor, weight: Tensor) -> Tensor:
    """Σ w `[d]`, Σ the covariance of `x [n, d]`."""
    centred = x - x.mean(0)
    return centred.T @ (centred @ weight) / len(x)


def readout(
    fitting: Fitting, x: np.ndarray, strength: float | None, folds: int, form: Form = "weight"
) -> Tensor:  # fmt: skip
    """float64 `[d]`: weight of the probe of `x [n, d]`, on raw inputs, or its pattern. Raises InputError for a form
    that is none."""
    if form not in get_args(Form):
        raise InputError(f"no form {form!r} of a probe: give {' or '.join(get_args(Form))}.")
    contrast = fitting.contrast
    contrast.need_sides("a probe")
    task = "classification" if contrast.classes else "regression"
    used = contrast.side != 0 if contrast.classes else np.ones(len(contrast), bool)
    y, x = contrast.side[used] if contrast.classes else contrast.values[used], x[used]
    if strength is not None:
        weight = fitted(x, y, task, strength)[0][:, 0]
    else:
        groups = contrast.groups[used]
        n = min(folds, len(set(groups)))
        if n < 2:
            raise InputError(
                "the sequences form one group, and none is held out to choose a penalty: give strength."
            )  # fmt: skip
        kind = StratifiedGroupKFold if contrast.classes else GroupKFold
        weight = searched(x, y, task, STRENGTHS, kind(n), groups)[0][0][:, 0]
    found = torch.from_numpy(weight)
    return found if form == "weight" else _covaried(torch.from_numpy(x).to(found), found)
