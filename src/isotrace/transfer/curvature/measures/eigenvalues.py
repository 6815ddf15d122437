"""The largest eigenvalues of the Hessian and the smallest, by Lanczos with implicit restarts (ARPACK)."""

import math

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress
from isotrace.transfer.curvature.loss import View, generator_for, normal
from isotrace.transfer.curvature.measure import Estimate, at_least, measure


@measure(
    "eigenvalues",
    cost="20–60 products for each end",
    source="Lehoucq, Sorensen & Yang 1998, ARPACK; Sagun et al. 2017, arXiv 1706.04454",
)
def eigenvalues(
    view: View, seed: int, progress: Progress, *, largest: int = 5, smallest: int = 1, basis: int = 20,
    tolerance: float = 1e-2, restarts: int = 10,
) -> list[Estimate]:  # fmt: skip
    """`lambda_1` ≥ `lambda_2` … and `lambda_min` ≤ `lambda_min_2` …; `tolerance`: relative, of each. NaN for what has
    not converged after `restarts`. Raises InputError where `basis` does not fit between their number and P."""
    at_least(0, largest=largest, smallest=smallest)
    ends = (("LA", largest, "lambda_{}"), ("SA", smallest, "lambda_min_{}"))
    asked = [end for end in ends if end[1]]
    found = []
    for which, n, name in progress(asked, "eigenvalues"):
        values = extreme(view, seed, which, n, basis, tolerance, restarts)
        for i in range(n):
            quantity = "lambda_min" if (which, i) == ("SA", 0) else name.format(i + 1)
            done = i < len(values)
            reason = "" if done else f"not converged after {restarts} restarts: give more, or a larger tolerance"
            found.append(Estimate(quantity, float(values[i]) if done else math.nan, None, reason))
    return found


def extreme(view: View, seed: int, which: str, n: int, basis: int, tolerance: float, restarts: int) -> np.ndarray:
    """Up to `n` converged ones from the end on, `which` as scipy says it. With fewer than n converged, ARPACK does not
    say which ones they are, so that none is given."""
    if not n < basis <= view.size:
        raise InputError(f"{n} eigenvalues of {view.size} parameters from a basis of {basis}: give n < basis ≤ all.")
    at, dtype = view.loss.at, view.loss.at.detach().cpu().numpy().dtype

    def times(vector: np.ndarray) -> np.ndarray:
        return view.product(torch.from_numpy(vector.reshape(-1)).to(at)).cpu().numpy()

    operator = LinearOperator((view.size, view.size), matvec=times, dtype=dtype)  # pyright: ignore[reportCallIssue]
    start = normal(1, view.loss, generator_for(view.loss, seed))[0].cpu().numpy()
    given = {"ncv": basis, "tol": tolerance, "maxiter": restarts, "v0": start, "return_eigenvectors": False}
    try:
        values = eigsh(operator, n, which=which, **given)
    except ArpackNoConvergence:
        return np.zeros(0)
    return np.sort(values)[:: -1 if which == "LA" else 1]
