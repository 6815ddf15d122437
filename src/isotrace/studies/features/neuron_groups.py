"""Groups of neurons by semi-NMF in one layer of molm: how much of the held-out energy they explain beside an SVD of
equal rank, and how many of them come back, from another start and from other molecules. (K, p) are chosen by the
latter."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from isotrace.activations.harvest import activations
from isotrace.base.progress import Progress
from isotrace.dictionaries.architectures.snmf import (
    OFFSETS,
    best_starts,
    consensus,
    dealt,
    matched,
    nonnegative,
    offset_of,
    recurring,
)
from isotrace.stats.bootstrap import group_weights, interval, mean_interval
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.subject import load_subject

LAYER, N_STEPS, DRAWS = 3, 20, 500


@dataclass(frozen=True)
class Tokens:
    """Neurons `[tokens, d_ff]` of some molecules, and the molecule of each token."""

    x: Tensor
    groups: list[str]


def tokens_of(texts: list[str], n: int, progress: Progress) -> Tokens:
    """The first `n` tokens."""
    subject, found, groups = load_subject("bundled:molm"), [], []
    for text in progress(texts, "neurons of molecules"):
        found.append(activations(subject, subject.tokenize([text]), [f"layers.{LAYER}.neuron"])[0])
        groups += [text] * len(found[-1])
        if len(groups) >= n:
            break
    return Tokens(torch.cat(found)[:n], groups[:n])


def explained(left: Tensor, held: Tokens, seed: int) -> tuple[float, tuple[float, float]]:
    """1 − ‖left‖² / ‖x‖² of what is left of held-out neurons, uncentred, with its interval over molecules."""
    weights = group_weights(held.groups, DRAWS, (seed, 11))
    parts = [weights @ t.square().sum(1).double().numpy() for t in (left, held.x)]
    share = 1 - parts[0] / parts[1]
    return float(share[0]), interval(share[1:])


def row(train: Tokens, held: Tokens, k: int, p: float, offset: str, n_seeds: int, iterations: int, seed: int) -> dict:
    """One choice of settings; what is told is told of the best start, and of the groups that recur."""
    c = offset_of(offset, train.x)
    runs = best_starts(train.x - c, k, p, iterations, starts=dealt(2 * n_seeds, n_seeds, seed))
    other = best_starts(held.x - c, k, p, iterations, starts=dealt(2, 1, seed + 1))[0].factors

    def left(factors: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(factors, dim=0)
        x = held.x - c
        return x - nonnegative(x @ unit, unit.T @ unit, N_STEPS) @ unit.T

    factors, share = consensus([one.factors for one in runs], p)
    energy, ends = explained(left(runs[0].factors), held, seed)
    kept, kept_ends = explained(left(factors), held, seed)
    basis = torch.linalg.svd(train.x, full_matrices=False)[2][:k]
    svd, svd_ends = explained(held.x - held.x @ basis.T @ basis, held, seed)
    pairs = [recurring(a.factors, b.factors) for a, b in combinations(runs, 2)]
    again = (matched(runs[0].factors, other)[1] > 0.9).double().numpy()
    agreed = (share >= 0.8 - 1e-9).double().numpy()
    return {
        "offset": offset, "k": k, "p": p, "energy": energy, "energy_ci": ends, "svd": svd, "svd_ci": svd_ends,
        "energy_consensus": kept, "energy_consensus_ci": kept_ends,
        "recur_two_seeds": float(np.mean(pairs)), "recur_least": min(pairs), "recur_most": max(pairs),
        "recur_80": float(agreed.mean()), "recur_80_ci": mean_interval(agreed, seed),
        "recur_held_out": float(again.mean()), "recur_held_out_ci": mean_interval(again, seed),
    }  # fmt: skip


@study("neuron_groups", "groups of neurons by semi-NMF in molm: energy beside SVD, and how many come back")
def neuron_groups(setting: Setting) -> Outcome:
    n, iterations, n_seeds = (2_000, 60, 3) if setting.quick else (6_000, 150, 5)
    sizes, offsets = ((50,), ("nothing", "median")) if setting.quick else ((50, 100), OFFSETS)
    texts = sorted({text for name in ("esol", "bbb") for text in bundled_table(name)["smiles"]})
    order = np.random.default_rng((setting.seed, 10)).permutation(len(texts))
    texts = [texts[i] for i in order if len(texts[i]) <= 100]
    half = len(texts) // 2
    train, held = (tokens_of(part, n, setting.progress) for part in (texts[:half], texts[half:]))
    choices = [(k, p, offset) for offset in offsets for k in sizes for p in (0.01, 0.05)]
    rows = [
        row(train, held, k, p, offset, n_seeds, iterations, setting.seed)
        for k, p, offset in setting.progress(choices, "settings")
    ]
    best = max(rows, key=lambda one: one["recur_held_out"])
    for one in rows:
        one["chosen"] = one is best
    low, high = (f(one["recur_two_seeds"] for one in rows) for f in (min, max))
    verdict = (
        f"Two seeds share {low:.0%} to {high:.0%} of their groups (cosine above 0.9); most come back from other "
        f"molecules with K {best['k']}, p {best['p']:.0%}, {best['offset']} subtracted: {best['recur_held_out']:.0%}. "
        f"These groups explain {best['energy']:.2f} of the held-out energy, those that recur in four seeds of five "
        f"{best['energy_consensus']:.2f}, an SVD of that rank {best['svd']:.2f}."
    )
    about = f"layer {LAYER} of molm, {n:,} tokens to fit and as many held out, {iterations} iterations, {n_seeds} seeds"
    return Outcome({"settings": rows}, (verdict, f"{about}, each the better of two starts; energy is not centred"))
