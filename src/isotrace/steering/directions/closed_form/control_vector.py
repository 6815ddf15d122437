"""Control vectors: the main direction of the differences between pairs (representation engineering, Zou et al. 2023).

The differences are not centred before their singular vectors are taken: centring removes the very mean that all pairs
share, which is what is looked for.
"""

from typing import Literal

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.steering import AddEdit
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.states import How

Form = Literal["svd", "mean_difference", "mean_of_positives"]


@direction(
    "control_vector", labels="binary", pairs="yes", cost="2N F", tuned="layers", first=1,
    source="Zou et al. 2023 (representation engineering); Højer et al. 2025",
)  # fmt: skip
def control_vector(fitting: Fitting, form: Form = "svd", how: How | None = None) -> list[AddEdit]:
    """The first singular vector of the differences of pairs, uncentred, pointing where most of them point

    `form`: `mean_difference` of the pairs, or `mean_of_positives`, the positives alone, instead. Without `layers` the
    first is left out. Raises InputError for fewer than two pairs."""
    pairs = torch.from_numpy(fitting.contrast.need_pairs("a control vector"))
    states, lengths = fitting.states(how), fitting.lengths
    return [
        AddEdit(
            components=fitting.components, layer=layer, scale=lengths[layer],
            direction=fitting.shaped(layer, vector_of(x[pairs[:, 0]], x[pairs[:, 1]], form)),
        )
        for layer, x in sorted(states.items())
    ]  # fmt: skip


def vector_of(positive: Tensor, negative: Tensor, form: Form) -> Tensor:
    """`[d]` of states `[pairs, d]`."""
    if form == "mean_of_positives":
        return positive.mean(0)
    if form == "mean_difference":
        return (positive - negative).mean(0)
    if form == "svd":
        return main_direction(positive - negative)
    raise InputError(f"no form {form!r} of a control vector: give svd, mean_difference or mean_of_positives.")


def main_direction(differences: Tensor) -> Tensor:
    """Unit `[d]`: the first right singular vector of `[pairs, d]`, uncentred, with the sign that most of the pairs have
    along it; where as many have either, that of their mean."""
    vector = torch.linalg.svd(differences, full_matrices=False).Vh[0]
    along = differences @ vector
    side = along.sign().sum() or along.sum()
    return vector if side >= 0 else -vector
