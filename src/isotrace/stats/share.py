"""A part of a whole that may be nothing: no ratio of rounding errors is ever printed."""

from typing import overload

import numpy as np


@overload
def share(part: float, whole: float, noise: float) -> float: ...
@overload
def share(part: np.ndarray, whole: np.ndarray | float, noise: np.ndarray | float) -> np.ndarray: ...
@overload
def share(part: float, whole: np.ndarray, noise: np.ndarray | float) -> np.ndarray: ...
def share(part, whole, noise):
    """part / whole in float64 (arrays broadcast), NaN where not |whole| > noise or either is not finite.

    `noise`, in the unit of `whole`, is what `whole` can be by rounding (or by chance) alone; 0 refuses only an exact
    zero. ValueError for a negative or undefined noise.
    """
    part, whole, noise = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in (part, whole, noise)))
    if not (noise >= 0).all():
        raise ValueError(f"noise {noise} must be at least 0")
    defined = (np.abs(whole) > noise) & np.isfinite(whole) & np.isfinite(part)
    found = np.divide(part, whole, out=np.full(part.shape, np.nan), where=defined)
    return found if found.ndim else float(found)
