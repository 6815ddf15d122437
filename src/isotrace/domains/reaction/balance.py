"""Stoichiometry: coefficients with which a reaction keeps every atom and the charge.

The composition matrix has a row per element and one of charge, and a column per species, those of products negative. A
balance is a vector of positive whole numbers in its null space, which is found by elimination in whole numbers, without
rounding. Where the null space has one dimension there is one balance at most; where it has more, integer programming
finds that with the least sum.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import gcd, lcm
from typing import Literal

import numpy as np
from rdkit import Chem
from scipy.optimize import Bounds, LinearConstraint, milp

from isotrace.base.errors import InputError

CHARGE = "charge"
Composition = Mapping[str, int]
"""Atoms of each element, and `charge`. An isotope that is written out, `13C`, is an element of its own."""
Redox = Literal["acid", "base"]
FREE: dict[Redox, dict[str, Composition]] = {
    "acid": {"e-": {CHARGE: -1}, "H+": {"H": 1, CHARGE: 1}, "H2O": {"H": 2, "O": 1}},
    "base": {"e-": {CHARGE: -1}, "OH-": {"H": 1, "O": 1, CHARGE: -1}, "H2O": {"H": 2, "O": 1}},
}
"""Of a half-reaction: what may stand on either side of it, or be absent."""
SECONDS = 5.0
"""One integer programme may take; those of real reactions take milliseconds."""


def composition(mol: Chem.Mol) -> dict[str, int]:
    """Hydrogens counted, nothing that is zero. Raises InputError for an atom that is no element."""
    found: Counter[str] = Counter()
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 0:
            raise InputError("an atom is a placeholder (*): write the element, so that atoms can be counted.")
        found[f"{atom.GetIsotope() or ''}{atom.GetSymbol()}"] += 1
        found["H"] += atom.GetTotalNumHs()
        found[CHARGE] += atom.GetFormalCharge()
    return {name: count for name, count in found.items() if count}


def total(parts: Sequence[Composition]) -> dict[str, int]:
    """Of all of them together, nothing that is zero."""
    names = dict.fromkeys(name for part in parts for name in part)
    found = {name: sum(part.get(name, 0) for part in parts) for name in names}
    return {name: count for name, count in found.items() if count}


def null_space(matrix: np.ndarray) -> list[tuple[int, ...]]:
    """Integer vectors that span `{x: matrix x = 0}`, `matrix` int64 `[rows, columns]`: one per column without a pivot,
    positive there, the greatest common divisor of each 1."""
    rows = matrix.tolist()
    pivots: list[int] = []
    for column in range(matrix.shape[1]):
        done = len(pivots)
        place = next((i for i in range(done, len(rows)) if rows[i][column]), None)
        if place is None:
            continue
        rows[done], rows[place] = rows[place], rows[done]
        pivot = rows[done]
        for i, row in enumerate(rows):
            if i != done and (factor := row[column]):
                rows[i] = _reduced(
                    [value * pivot[column] - factor * own for value, own in zip(row, pivot, strict=True)]
                )
        pivots.append(column)
    found = []
    for column in (c for c in range(matrix.shape[1]) if c not in pivots):
        scale = lcm(*(row[pivot] for row, pivot in zip(rows, pivots, strict=False)))
        vector = [0] * matrix.shape[1]
        vector[column] = scale
        for row, pivot in zip(rows, pivots, strict=False):
            vector[pivot] = -row[column] * scale // row[pivot]
        found.append(tuple(_reduced(vector)))
    return found


def _reduced(values: list[int]) -> list[int]:
    """Over their greatest common divisor."""
    common = gcd(*values) or 1
    return [value // common for value in values]


def balances(
    before: Sequence[Composition], after: Sequence[Composition], *, free: Sequence[Composition] = (), n: int = 1
) -> list[tuple[int, ...]]:
    """Up to `n` balances with the least sum of coefficients, none where the two sides cannot be balanced.

    A balance holds the coefficients of `before` and `after`, at least 1, then those of `free`, of any sign: above 0
    where a free species is used up, below 0 where it is set free; its size counts for the sum. Raises InputError for a
    side without species, and where integer programming finds no answer in `SECONDS`.
    """
    if not before or not after:
        raise InputError("a side of the reaction has no species: give at least one before and one after.")
    species = [*before, *after, *free]
    signs = np.array([1] * len(before) + [-1] * len(after) + [1] * len(free))
    elements = sorted({name for one in species for name in one})
    matrix = np.array([[one.get(name, 0) for one in species] for name in elements], dtype=np.int64)
    matrix = matrix.reshape(len(elements), len(species)) * signs
    space, n_fixed = null_space(matrix), len(before) + len(after)
    if len(space) == 1:
        (vector,) = space
        vector = vector if vector[0] > 0 else tuple(-value for value in vector)
        return [vector] if min(vector[:n_fixed]) > 0 else []
    return _least(matrix, n_fixed, n) if space else []


def _least(matrix: np.ndarray, n_fixed: int, n: int) -> list[tuple[int, ...]]:
    """Of a null space of several dimensions. A free species is the difference of two variables, of which at most one
    is above 0 at the least sum."""
    split = np.concatenate([matrix, -matrix[:, n_fixed:]], 1)
    low = np.array([1.0] * n_fixed + [0.0] * (split.shape[1] - n_fixed))
    high, ones = np.full(split.shape[1], np.inf), np.ones(split.shape[1])
    first = _programme(split, ones, low, high)
    if first is None:
        return []
    split = np.concatenate([split, ones[None].astype(np.int64)])
    goal, found, pending = int(first.sum()), list[tuple[int, ...]](), [(low, high, 0)]
    while pending and len(found) < n:  # variables are pinned one after the other, each at its values in ascending order
        low, high, place = pending.pop()
        if place == split.shape[1]:
            signed = low.astype(np.int64)
            n_free = matrix.shape[1] - n_fixed
            signed[n_fixed : n_fixed + n_free] -= signed[n_fixed + n_free :]
            found.append(tuple(signed[: matrix.shape[1]].tolist()))
            continue
        cost = np.eye(1, split.shape[1], place)[0]
        best = _programme(split, cost, low, high, goal)
        if best is None:
            continue
        above, pinned = low.copy(), low.copy()
        above[place], pinned[place], at = best[place] + 1, best[place], high.copy()
        at[place] = best[place]
        pending += [(above, high, place), (pinned, at, place + 1)]
    return found


def _programme(
    matrix: np.ndarray, cost: np.ndarray, low: np.ndarray, high: np.ndarray, goal: int | None = None
) -> np.ndarray | None:
    """Whole numbers of least `cost` within bounds with `matrix x = 0`; the last row is `goal` if there is one."""
    wanted = np.zeros(len(matrix))
    if goal is not None:
        wanted[-1] = goal
    answer = milp(
        cost, integrality=np.ones(len(cost)), bounds=Bounds(low, high),  # pyright: ignore[reportArgumentType]
        constraints=LinearConstraint(matrix, wanted, wanted), options={"time_limit": SECONDS},  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    if answer.status == 2:
        return None
    found = None if answer.x is None else np.rint(answer.x).astype(np.int64)
    if answer.status != 0 or found is None or not np.array_equal(matrix @ found, wanted):
        raise InputError("no least balance was found in time: leave out species that take no part.")
    return found
