"""Chains that generators fall into: one residue over and over, stretches of few kinds of residue."""

import math
from collections import Counter

import numpy as np

from isotrace.domains.protein.sequence import residues

SHARE, RISE, WINDOW = 0.25, 0.1, 12


def complexity(text: str) -> float:
    """The lowest Shannon entropy, in nats, of the residues of WINDOW neighbours; NaN of a shorter chain. Raises
    InputError for a text that is no chain."""
    chain = residues(text)
    if len(chain) < WINDOW:
        return math.nan
    places = np.frombuffer(chain.encode(), dtype=np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(places, WINDOW)
    # Σ over residues of −c/12 log(c/12) = log 12 − mean over the twelve of log c
    counts = (windows[:, :, None] == windows[:, None]).sum(-1)
    return math.log(WINDOW) - float(np.log(counts).mean(1).max())


def degenerate(text: str, start: str | None, floor: float | None) -> str | None:
    """Why it is no design, or None: a residue with more than SHARE of the chain and RISE more than in `start`, or a
    window of less entropy than `floor`."""
    chain, before = residues(text), residues(start) if start is not None else ""
    letter, count = Counter(chain).most_common(1)[0]
    share, own = count / len(chain), before.count(letter) / max(1, len(before))
    if share > SHARE and share > own + RISE:
        return f"{share:.0%} {letter}"
    found = complexity(chain)
    if floor is not None and found < floor:
        return f"{WINDOW} residues with an entropy of {found:.2f} nats"
    return None
