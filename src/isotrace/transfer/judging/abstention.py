"""Which checkpoint to take for a task, or the fingerprint forest, or that it cannot be told, with the reason."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isotrace.base.errors import InputError
from isotrace.domains.domain import Domain
from isotrace.stats.bootstrap import group_weights, interval
from isotrace.stats.metrics import METRICS
from isotrace.stats.similarity import tanimoto

FEWEST, NEAREST = 50, 0.3
"""Labels, and the median similarity to the corpus, below which nothing is told."""
CONSTANT = {"auroc": 0.5, "macro_auroc": 0.5, "r2": 0.0, "spearman": 0.0}
"""What an answer that knows no sequence scores."""
FOREST = "forest"
BLOCK = 2_048


@dataclass(frozen=True)
class Decision:
    """choice: a checkpoint, `forest`, or None: cannot tell, for the `reason`. best: the checkpoint of the best score.
    lead: its score less the forest's; low, high: 95 % bootstrap over scaffolds, the lower end wide enough for the best
    of all checkpoints to have been picked. scores: of every checkpoint and the forest. near: median similarity to the
    corpus, NaN where that is not known."""

    choice: str | None
    reason: str
    best: str
    lead: float
    low: float
    high: float
    scores: dict[str, float]
    near: float
    n: int


def decide(
    outputs: Mapping[str, np.ndarray], forest: np.ndarray, y: np.ndarray, groups: Sequence[str], metric: str,
    near: np.ndarray | None, *, seed: int, n_draws: int = 1_000,
) -> Decision:  # fmt: skip
    """By predictions of molecules that the fit behind them had not seen: `outputs[checkpoint]` and `forest` `[n,
    outputs]`, of labels `y [n]`; `groups`: scaffolds `[n]`. near `[n]`: similarity to the corpus, see
    `similarity_to_corpus`; None: the corpus is not known, and its rule is left out.

    Beside the three rules of the specification what is chosen must be better than a constant: on labels that cannot be
    learned a stiff probe leads over a forest, which fits the noise. Raises InputError for no checkpoint, a checkpoint
    named `forest` and a metric without a known constant.
    """
    if not outputs or FOREST in outputs:
        raise InputError("give at least one checkpoint to choose from, none of them called forest.")
    if metric not in CONSTANT:
        raise InputError(f"what a constant scores in {metric} is not known: give one of {', '.join(CONSTANT)}.")
    names = [*outputs]
    weights = group_weights(groups, n_draws, (seed, 21))
    every = np.stack([METRICS[metric](one, y, weights) for one in (*outputs.values(), forest)])
    scores = dict(zip([*names, FOREST], every[:, 0].tolist(), strict=True))
    if not np.isfinite(every[:, 0]).all():
        raise InputError(f"{metric} is not defined on these labels: they are all equal.")
    i, leads = int(every[:-1, 0].argmax()), every[:-1] - every[-1]
    low, high = float(_below(leads)[i]), interval(leads[i, 1:])[1]
    above = {name: float(end) for name, end in zip(names, _below(every[:-1] - CONSTANT[metric]), strict=True)}
    above[FOREST] = float(_below(every[-1:] - CONSTANT[metric])[0])
    middle = float("nan") if near is None else float(np.median(near))
    choice = names[i] if low > 0 else FOREST if high < 0 else None
    outside = near is not None and not middle >= NEAREST
    reason = next(_reasons(len(y), middle if outside else None, choice, above, names[i], low, high), None)
    said = f"{choice} leads" if choice != FOREST else "the forest leads every checkpoint"
    return Decision(
        None if reason else choice, reason or said, names[i], float(leads[i, 0]), low, high, scores, middle, len(y)
    )


def _reasons(
    n: int, far: float | None, choice: str | None, above: Mapping[str, float], best: str, low: float, high: float
) -> Iterator[str]:
    """Why it cannot be told, the most basic first."""
    if n < FEWEST:
        yield f"cannot tell: {n} labels, and at least {FEWEST} are needed"
    if far is not None:
        yield f"cannot tell: the sequences are outside the corpus (median similarity {far:.2f}, below {NEAREST})"
    if choice is None:
        yield f"cannot tell: the lead of {best} over the forest may be 0 (95 % interval {low:.3f} to {high:.3f})"
    elif not above[choice] > 0:
        yield f"cannot tell: nothing shows that {choice} is better than a constant"


def _below(draws: np.ndarray) -> np.ndarray:
    """Lower ends `[m]` of 95 % intervals of `draws [m, 1 + n_draws]` that hold for all m at once: the bootstrap of the
    largest excess over what was observed (Westfall & Young 1993). NaN where draws are not defined."""
    excess = (draws[:, 1:] - draws[:, :1]).max(0)
    return draws[:, 0] - interval(excess)[1]


def similarity_to_corpus(domain: Domain, texts: Sequence[str], corpus: Sequence[str]) -> np.ndarray:
    """float64 `[n]`: the largest Tanimoto similarity of the domain's fingerprints of each text to one of `corpus`; 0
    for an empty corpus. Raises InputError for a text that is not valid."""
    x, found = domain.fingerprints(texts), np.zeros(len(texts))
    for start in range(0, len(corpus), BLOCK):
        found = np.maximum(found, tanimoto(x, domain.fingerprints(corpus[start : start + BLOCK])).max(1))
    return found
