"""Which part each sequence goes to: parts share no group of relatives, and no text."""

import hashlib
from collections.abc import Sequence

import numpy as np

from isotrace.base.errors import InputError


def deal(groups: Sequence[str], shares: Sequence[float], seed: int) -> np.ndarray:
    """int64 `[n]`: the part of each sequence, of `len(shares)`; `groups[i]` is the group of sequence i.

    Whole groups are dealt out in random order, each to the part that lacks most of its share, so that one large group
    leaves no part empty. Raises InputError for fewer groups than parts.
    """
    names, inverse, counts = np.unique(np.asarray(groups, dtype=object), return_inverse=True, return_counts=True)
    if len(names) < len(shares):
        raise InputError(
            f"{len(shares)} parts need {len(shares)} groups, and the sequences form {len(names)}: give more diverse "
            "ones, or name a column of other groups with --group (of variants of one sequence the mutation or site)."
        )
    part, filled = np.zeros(len(names), dtype=np.int64), np.zeros(len(shares))
    for group in np.random.default_rng((seed, 1)).permutation(len(names)):
        part[group] = np.argmin(filled / shares)
        filled[part[group]] += counts[group]
    return part[inverse]


def by_hash(texts: Sequence[str], every: int) -> tuple[list[str], list[str]]:
    """(the rest, about one text of `every`), in their order: a text is on the same side in any company."""
    rest, chosen = [], []
    for text in texts:
        digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
        (rest if digest % every else chosen).append(text)
    return rest, chosen
