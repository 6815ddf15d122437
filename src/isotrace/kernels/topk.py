"""Exact top-k over wide rows, by group maxima.

The k largest entries of a row lie in the k groups with the largest maxima: were one in another group, k entries,
the maxima of those groups, would be at least as large. So the search runs over the maxima first, then over the
entries of k groups, instead of over the whole row.
"""

import torch
from torch import Tensor

from isotrace.kernels.backend import Backend, resolve

GROUP = 8


def topk(rows: Tensor, k: int, *, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """(values, indices) `[..., k]` of the k largest entries of `rows [..., F]`, in no particular order.

    Numba searches as training does. Among equal entries any may be taken, as with `torch.topk`. Differentiable in the
    values.
    """
    n = rows.shape[-1]
    if n // GROUP <= 2 * k:
        return torch.topk(rows, k, sorted=False)
    if rows.dtype in (torch.float32, torch.float64) and resolve(backend, rows) == "numba":
        from isotrace.kernels import cpu

        indices = cpu.largest(rows.detach().reshape(-1, n), k).view(*rows.shape[:-1], k)
        return rows.gather(-1, indices), indices
    if n % GROUP:
        return torch.topk(rows, k, sorted=False)
    grouped = rows.unflatten(-1, (n // GROUP, GROUP))
    with torch.no_grad():
        best = grouped.amax(-1).topk(k, sorted=False).indices
        candidates = grouped.gather(-2, best[..., None].expand(*best.shape, GROUP)).flatten(-2)
        places = candidates.topk(k, sorted=False).indices
        indices = best.gather(-1, places // GROUP) * GROUP + places % GROUP
    return rows.gather(-1, indices), indices
