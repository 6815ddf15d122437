"""Permutation tests: shuffles within strata, signs flipped, p of what was observed and q over many tests."""

import numpy as np

MEMBERS = 20  # of a stratum, where there are as many


def strata(lengths: np.ndarray) -> np.ndarray:
    """int64 `[units]`: stratum of each, numbered by length. Equal lengths stay together; a stratum takes the next
    length in until it has MEMBERS, and what is left over joins the last. Empty units are apart."""
    values, counts = np.unique(lengths, return_counts=True)
    group, members = np.zeros(len(values), dtype=np.int64), 0
    for i in range(1, len(values)):
        members += counts[i - 1]
        group[i] = group[i - 1]
        if members >= MEMBERS or values[i - 1] == 0:
            group[i] += 1
            members = 0
    last = group == group[-1] if len(group) else group
    if len(group) and counts[last].sum() < MEMBERS:
        joined = np.maximum(group[-1] - 1, int(values[0] == 0))
        group[last] = min(joined, group[-1])
    return group[np.searchsorted(values, lengths)]


def donors(stratum: np.ndarray, key: np.ndarray) -> np.ndarray:
    """int64 `[units]`: whose value each unit is given when values move within strata in the order of random `key`."""
    found = np.empty(len(stratum), dtype=np.int64)
    found[np.argsort(stratum, kind="stable")] = np.lexsort((key, stratum))
    return found


def p_values(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """(1 + #{null ≥ observed}) / (permutations + 1) (Phipson and Smyth 2010), of observed `[…]` against null
    `[permutations, …]`, which broadcasts: against a null of maxima over many tests, p is corrected for all of them
    (Westfall and Young 1993). NaN where nothing was observed.

    Compared in the precision of `null`: rounding alone must not put what was observed above a shuffle that ties.
    """
    found = (1 + (null >= observed.astype(null.dtype)).sum(0)) / (len(null) + 1)
    return np.where(np.isnan(observed), np.nan, found)


def sign_flip(effects: np.ndarray, rng: np.random.Generator, n_draws: int) -> np.ndarray:
    """Two-sided p `[n]` of every column of `effects [inputs, n]` having mean 0, against the largest |t| over columns
    under random signs of whole rows (Westfall & Young 1993): the chance of any false finding is what p says."""
    n = len(effects)
    square = (effects**2).sum(0)

    def t(sums: np.ndarray) -> np.ndarray:
        spread = np.sqrt(np.maximum(square - sums**2 / n, 0.0))
        # a column of zeros has no effect; one that never varies has no noise to weigh its effect against
        return np.divide(np.abs(sums), spread, out=np.where(sums == 0, 0.0, np.inf), where=spread > 0)

    largest = t(rng.choice([-1.0, 1.0], (n_draws, n)) @ effects).max(1)
    # among few inputs the very signs observed are drawn again, and are equal only up to rounding
    return p_values(t(effects.sum(0)), largest[:, None] * (1 + 1e-9))


def q_values(p: np.ndarray, best: np.ndarray, n_tested: int) -> np.ndarray:
    """q `[pairs]` from p `[pairs]` by Benjamini and Hochberg over concepts, each once: `best` bool marks
    the one pair that stands for its concept; other pairs take the q that their p would have among those.

    `n_tested` concepts were tested; those without any pair count with p = 1.
    """
    ranked = np.sort(np.concatenate([p[best], np.ones(n_tested - int(best.sum()))]))
    from scipy.stats import false_discovery_control  # a second to import, which not every command should take

    steps = np.append(false_discovery_control(ranked), 1.0)
    return steps[np.searchsorted(ranked, p, side="left")]
