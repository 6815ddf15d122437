"""Permutation entropy and complexity of a series, and non-negative factors of a tensor (METHODS_BASES §16).

Entropy H and complexity C (Bandt and Pompe 2002; Rosso et al. 2007) count which of the n! orders n successive values
have. The table shows what they say of series that are known, as they are and shuffled; a series must have 5 · n!
values, for white noise as long as a SMILES reads as chaos. Equal values have no order: they are drawn apart at random.

Factors T ≈ Σ_r a_r ⊗ b_r ⊗ c_r, all ≥ 0, by multiplicative updates (Welling and Weber 2001); the rank is the largest at
which two starts agree on every factor.
"""

from itertools import permutations
from math import factorial, log2
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from isotrace.base.errors import InputError
from isotrace.stats.bootstrap import mean_interval
from isotrace.studies.study import Outcome, Setting, study

N_ITERATIONS = 1_000
TOLERANCE = 1e-7
SMALL = 1e-12
AGREE = 0.9
"""Cosine from which two factors are one."""


def entropy_and_complexity(series: np.ndarray, n: int, *, lag: int = 1, seed: int = 0) -> tuple[float, float]:
    """(H, C) of patterns of `n` values that stand `lag` apart. Raises InputError for fewer than 5 · n! patterns, see
    `raw_entropy` for those."""
    if (count := len(series) - lag * (n - 1)) < 5 * factorial(n):
        raise InputError(f"{count} patterns of {n} values say nothing: give {5 * factorial(n)}, or a smaller n.")
    return raw_entropy(series, n, lag=lag, seed=seed)


def raw_entropy(series: np.ndarray, n: int, *, lag: int = 1, seed: int = 0) -> tuple[float, float]:
    """The same of a series of any length."""
    noise = np.random.default_rng(seed).random(len(series))
    rank = np.lexsort((noise, series)).argsort()  # ties in random order: a stable sort would make zeros a ramp
    windows = np.stack([rank[at * lag : len(rank) - lag * (n - 1 - at)] for at in range(n)], 1)
    codes = windows.argsort(1) @ n ** np.arange(n)
    known = {int(np.array(p) @ n ** np.arange(n)): at for at, p in enumerate(permutations(range(n)))}
    p = np.bincount([known[c] for c in codes.tolist()], minlength=factorial(n)) / len(codes)
    size = factorial(n)
    entropy = _bits(p)
    apart = _bits((p + 1 / size) / 2) - entropy / 2 - log2(size) / 2
    scale = (1 + 1 / size) * log2(size + 1) - 2 * log2(2 * size) + log2(size)
    share = entropy / log2(size)
    return share, -2 * share * apart / scale


def _bits(p: np.ndarray) -> float:
    positive = p[p > 0]
    return float(-(positive * np.log2(positive)).sum())


Factors = tuple[np.ndarray, ...]
"""`[size, rank]` for every side of the tensor, columns of unit length but those of the first."""


def nonnegative_factors(tensor: np.ndarray, rank: int, seed: int) -> tuple[Factors, float]:
    """(factors, share of the squared norm that they explain). Raises InputError for a negative entry."""
    if tensor.min() < 0:
        raise InputError("non-negative factors need entries of 0 or more: give activations, not their deviations.")
    rng, letters = np.random.default_rng(seed), "abcdefg"[: tensor.ndim]
    factors = [rng.random((size, rank)) + 0.1 for size in tensor.shape]
    total, error, last = float((tensor**2).sum()), np.inf, np.inf
    for _ in range(N_ITERATIONS):
        for side in range(tensor.ndim):
            others = [f for at, f in enumerate(factors) if at != side]
            names = [f"{letter}r" for at, letter in enumerate(letters) if at != side]
            up = np.einsum(f"{letters},{','.join(names)}->{letters[side]}r", tensor, *others, optimize=True)
            gram = np.ones((rank, rank))
            for other in others:
                gram *= other.T @ other
            factors[side] *= up / (factors[side] @ gram + SMALL)
            if side:
                length = np.linalg.norm(factors[side], axis=0) + SMALL
                factors[side] /= length
                factors[0] *= length
        each = ",".join(f"{letter}r" for letter in letters)
        error = float(((tensor - np.einsum(f"{each}->{letters}", *factors, optimize=True)) ** 2).sum())
        if last - error < TOLERANCE * total:
            break
        last = error
    return tuple(factors), 1 - error / total


def matched_cosines(a: Factors, b: Factors) -> np.ndarray:
    """`[rank]`: of components matched one to one, the product of the cosines of their sides."""
    product = np.ones((a[0].shape[1], b[0].shape[1]))
    for one, other in zip(a, b, strict=True):
        product *= _unit(one).T @ _unit(other)
    return product[linear_sum_assignment(-product)]


def _unit(columns: np.ndarray) -> np.ndarray:
    return columns / (np.linalg.norm(columns, axis=0) + SMALL)


def stable_rank(tensor: np.ndarray, ranks: range, n_starts: int, seed: int) -> list[dict[str, Any]]:
    """A row for each rank: best share explained, and the mean over pairs of starts of the worst matched cosine."""
    rows = []
    for rank in ranks:
        found = [nonnegative_factors(tensor, rank, seed + start) for start in range(n_starts)]
        worst = [matched_cosines(found[0][0], other).min() for other, _ in found[1:]]
        rows.append({"rank": rank, "explained": max(share for _, share in found), "agreement": float(np.mean(worst)),
                     "agreement_ci": mean_interval(np.array(worst), seed)})  # fmt: skip
    return rows


def planted_tensor(rng: np.random.Generator, shape: tuple[int, ...] = (30, 40, 12), rank: int = 4) -> tuple[Any, Any]:
    """(tensor, factors): gamma-distributed entries, half of them 0, and noise of a tenth of the mean."""
    factors = tuple(rng.gamma(2, size=(size, rank)) * (rng.random((size, rank)) < 0.5) for size in shape)
    letters = "abcdefg"[: len(shape)]
    tensor = np.einsum(",".join(f"{letter}r" for letter in letters) + "->" + letters, *factors)
    return tensor + rng.random(shape) * 0.2 * tensor.mean(), factors


def series(n: int, seed: int) -> dict[str, np.ndarray]:
    """Of `n` values: a ramp, white noise and the logistic map at r = 4."""
    rng, x = np.random.default_rng(seed), np.empty(n)
    x[0] = rng.random()
    for at in range(1, n):
        x[at] = 4 * x[at - 1] * (1 - x[at - 1])
    return {"ramp": np.arange(float(n)), "white noise": rng.standard_normal(n), "logistic map": x}


@study("ordinal_patterns", "permutation entropy of known series, and non-negative factors of a planted tensor")
def run(setting: Setting) -> Outcome:
    rng, rows = np.random.default_rng(setting.seed), []
    long = series(20_000, setting.seed)
    cases = [(name, x, 5) for name, x in long.items()]
    cases += [("white noise, 46 values", rng.standard_normal(46), n) for n in (5, 3)]
    for name, x, n in cases:
        h, c = raw_entropy(x, n)
        shuffled = np.array([raw_entropy(rng.permutation(x), n) for _ in range(20)])
        rows.append({"series": name, "values": len(x), "n": n, "enough": len(x) >= 5 * factorial(n), "H": h, "C": c,
                     "H_shuffled": float(shuffled[:, 0].mean()), "C_shuffled": float(shuffled[:, 1].mean()),
                     "C_shuffled_ci": tuple(np.quantile(shuffled[:, 1], [0.025, 0.975]).tolist())})  # fmt: skip
    tensor, truth = planted_tensor(rng)
    factors = stable_rank(tensor, range(2, 8), 4 if setting.quick else 10, setting.seed)
    for row in factors:
        found, _ = nonnegative_factors(tensor, row["rank"], setting.seed)
        row["planted"] = float(matched_cosines(truth, found).min())
        flat, _ = nonnegative_factors(tensor.reshape(len(tensor), -1), row["rank"], setting.seed)
        row["planted_unfolded"] = float(matched_cosines((truth[0],), (flat[0],)).min())
    best = max((row["rank"] for row in factors if row["agreement"] >= AGREE), default=None)
    short = next(row for row in rows if row["values"] == 46)
    return Outcome(
        {"entropy": rows, "factors": factors},
        (
            f"White noise of 46 values has C = {short['C']:.2f} at n = 5, about what the logistic map has: only its "
            "shuffles tell the two apart, so positions in a string are no series.",
            f"Starts agree up to rank {best}; the tensor has 4.",
        ),
    )
