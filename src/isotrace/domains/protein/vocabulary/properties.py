"""Numbers of a protein from its residues alone, and the stretches a sliding window finds.

A number that needs every residue known (mass, charge, hydropathy) is NaN where the sequence holds a residue without a
value: X, B and Z always, U and O except for the mass.
"""

import math
from collections import Counter

import numpy as np

from isotrace.base.files import shipped_rows


def _scale(column: str) -> dict[str, float]:
    rows = shipped_rows("isotrace.domains.protein.vocabulary", "scales.csv")
    return {row["letter"]: float(row[column]) for row in rows if row[column]}


# Mean mass of the residue (amino acid less water) in dalton, as ExPASy computes with (Gasteiger et al. 2005).
MASS = _scale("mass")
WATER = 18.0153
# Kyte and Doolittle 1982, table 2.
HYDROPATHY = _scale("hydropathy")
# Eisenberg et al. 1984 (J. Mol. Biol. 179:125), normalised consensus scale.
CONSENSUS = _scale("consensus")
# Mean pKa in folded proteins, Grimsley et al. 2009, table 1 (arginine: Fitch et al. 2015).
PKA_POSITIVE = {"N-terminus": 7.7, "K": 10.5, "H": 6.6, "R": 13.8}
PKA_NEGATIVE = {"C-terminus": 3.3, "D": 3.5, "E": 4.2, "C": 6.8, "Y": 10.3}


def net_charge(sequence: str, ph: float) -> float:
    """Henderson–Hasselbalch charge in elementary charges, residues independent, cysteines reduced."""
    return _charge(Counter(sequence), ph)


def isoelectric_point(sequence: str) -> float:
    """pH at which `net_charge` is 0, by bisection: the charge falls with pH, from + at 0 to − at 16."""
    count, low, high = Counter(sequence), 0.0, 16.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _charge(count, middle) > 0 else (low, middle)
    return (low + high) / 2


def _charge(count: Counter[str], ph: float) -> float:
    positive = sum(count.get(k, 1 if "terminus" in k else 0) / (1 + 10 ** (ph - p)) for k, p in PKA_POSITIVE.items())
    negative = sum(count.get(k, 1 if "terminus" in k else 0) / (1 + 10 ** (p - ph)) for k, p in PKA_NEGATIVE.items())
    return positive - negative


def values(sequence: str) -> dict[str, float]:
    """Every `value` concept of a protein; see docs/concepts.md for units and sources."""
    n, count = len(sequence), Counter(sequence)
    known = all(letter in HYDROPATHY for letter in sequence)

    def share(letters: str) -> float:
        return sum(count[letter] for letter in letters) / n

    return {
        "length": float(n),
        "molecular weight": math.fsum(MASS.get(a, math.nan) * k for a, k in count.items()) + WATER,
        "isoelectric point": isoelectric_point(sequence) if known else math.nan,
        "net charge at pH 7": net_charge(sequence, 7.0) if known else math.nan,
        "GRAVY": math.fsum(HYDROPATHY[a] * k for a, k in count.items()) / n if known else math.nan,
        "aromaticity": share("FWY"),
        "aliphatic index": 100 * (share("A") + 2.9 * share("V") + 3.9 * share("IL")),
        "extinction coefficient": 5500.0 * count["W"] + 1490.0 * count["Y"],
        "fraction of helix formers": share("EALMQKRH"),
        "fraction of strand formers": share("VIYCWFT"),
        "fraction of turn formers": share("GNPSD"),
        "composition entropy": entropy([count[a] for a in count]),
    }


def entropy(counts: list[int]) -> float:
    """Shannon entropy in bits."""
    total = sum(counts)
    return -sum(k / total * math.log2(k / total) for k in counts if k)


def window_means(sequence: str, scale: dict[str, float], width: int) -> np.ndarray:
    """float64 `[max(residues − width + 1, 0)]`: mean of `scale` over each window, NaN with a residue not on it."""
    numbers = np.array([scale.get(letter, np.nan) for letter in sequence])
    if len(numbers) < width:
        return np.zeros(0)
    return np.lib.stride_tricks.sliding_window_view(numbers, width).mean(axis=1)


def helix_moments(sequence: str, width: int) -> np.ndarray:
    """Like `window_means`: hydrophobic moment per residue at 100° (Eisenberg, Weiss and Terwilliger 1982, eq. 1)."""
    numbers = np.array([CONSENSUS.get(letter, np.nan) for letter in sequence])
    if len(numbers) < width:
        return np.zeros(0)
    angle = np.exp(1j * np.deg2rad(100.0) * np.arange(width))
    return np.abs(np.lib.stride_tricks.sliding_window_view(numbers, width) @ angle) / width


def window_entropies(sequence: str, width: int) -> np.ndarray:
    """Like `window_means`: Shannon entropy in bits of the residues of each window (Wootton and Federhen 1993)."""
    if len(sequence) < width:
        return np.zeros(0)
    letters = np.frombuffer(sequence.encode(), dtype=np.uint8)
    seen = np.cumsum(letters[:, None] == np.unique(letters)[None], axis=0)
    counts = seen[width - 1 :] - np.concatenate([np.zeros_like(seen[:1]), seen[:-width]])
    share = counts / width
    return -np.sum(share * np.log2(np.where(share > 0, share, 1.0)), axis=1)


def stretches(windows: np.ndarray, width: int) -> list[range]:
    """Residues of every maximal run covered by windows that are true (bool, one per start)."""
    covered = np.zeros(len(windows) + width + 1, dtype=np.int8)
    for start in np.flatnonzero(windows):
        covered[start + 1 : start + width + 1] = 1
    edges = np.flatnonzero(np.diff(covered))
    return [range(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
