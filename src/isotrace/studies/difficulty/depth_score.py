"""Depth score: how much a prediction still changes in the last layers, and whether that tells of confident errors.

depth = mean over the states h_l before each block of the last quarter of the layers (rounded up) of the Jensen–Shannon
divergence, in nats, between softmax(head(norm h_l)) and what the model predicts; 0 where those blocks change nothing.
Only the idea is published; this form is ours. Every masked token is a sample, masked alone and read at its own place.
Three numbers of it predict whether a confident prediction (largest p ≥ `CONFIDENT`) is wrong: its depth, the
coefficient of variation of depth over the tokens asked for in its molecule, and early fluctuation, the mean divergence
between states one block apart in the first half of the layers. Null: entropy and largest probability alone, and labels
shuffled over molecules. All are logistic regressions, fitted on other molecules than they are judged on. The plain lens
is biased in middle layers, and early fluctuation with it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GroupKFold
from torch import Tensor

from isotrace.base.errors import SubjectError
from isotrace.discovery.methods.logit_lens import logit_lens
from isotrace.probing.linear import fitted
from isotrace.stats.bootstrap import group_weights, interval, mean_interval
from isotrace.stats.metrics import auroc
from isotrace.studies.network import molecules
from isotrace.studies.study import Outcome, Setting, study
from isotrace.subjects.heads.likelihoods import masked_copies
from isotrace.subjects.subject import Batch, Subject, load_subject

SUBJECT = "bundled:molm"
CONFIDENT, FOLDS, DRAWS, LEAST = 0.5, 5, 1_000, 10
"""Largest p from which a prediction is confident; folds; bootstrap draws; errors below which nothing is said."""
DEPTH, SIMPLE = ("depth", "variation", "early"), ("entropy", "confidence")


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen–Shannon divergence in nats, between 0 and ln 2, of distributions in the last dimension, float64; exactly 0
    of equal ones."""
    middle = (p + q) / 2
    sides = [torch.special.xlogy(side, side) - torch.special.xlogy(side, middle) for side in (p, q)]
    return (sides[0] + sides[1]).sum(-1) / 2


@dataclass(frozen=True, eq=False)
class Read:
    """Of masked tokens `[tokens]`: depth and early fluctuation in nats, entropy in nats, largest probability, and
    whether the token with it is the one that stood there."""

    depth: np.ndarray
    early: np.ndarray
    entropy: np.ndarray
    confidence: np.ndarray
    right: np.ndarray


@torch.no_grad()
def read(subject: Subject, batch: Batch, sites: list[int]) -> Read:
    """Of the tokens at `sites` of a batch of one, each masked alone. Raises SubjectError for fewer than two layers."""
    copies = masked_copies(subject, batch, [[site] for site in sites])
    places = [subject.reading_position(site) for site in sites]
    rows = torch.arange(len(sites))
    p = logit_lens(subject, copies, places).logits[:, rows, rows].double().softmax(-1)
    n = len(p) - 1
    if n < 2:
        raise SubjectError(f"{subject.source} has {n} layer: depth compares late layers with early ones.")
    last = -(-n // 4)
    depth = divergence(p[n - last : n], p[n]).mean(0)
    early = divergence(p[: n // 2], p[1 : n // 2 + 1]).mean(0)
    confidence, best = p[n].max(-1)
    entropy = -torch.special.xlogy(p[n], p[n]).sum(-1)
    parts = (depth, early, entropy, confidence, best == batch.ids[0, sites])
    return Read(*(part.cpu().numpy() for part in parts))


def predictors(found: list[Read]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """(name → `[tokens, 1]`, whether each is wrong, molecule of each), of the confident predictions. The coefficient
    of variation is 0 where the depth of all tokens is."""
    spread = [r.depth.std() / r.depth.mean() if r.depth.mean() > 0 else 0.0 for r in found]
    columns = {name: np.concatenate([getattr(r, name) for r in found])[:, None] for name in ("depth", "early", *SIMPLE)}
    columns["variation"] = np.concatenate([np.full(len(r.depth), s) for r, s in zip(found, spread, strict=True)])[
        :, None
    ]
    wrong = ~np.concatenate([r.right for r in found])
    molecule = np.repeat(np.arange(len(found)), [len(r.depth) for r in found])
    kept = columns["confidence"][:, 0] >= CONFIDENT
    return {name: x[kept] for name, x in columns.items()}, wrong[kept], molecule[kept]


def held_out(x: np.ndarray, wrong: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Log-odds `[n, 1]` of being wrong, by a readout of `x [n, d]` of other groups; standardised within each fold, so
    that folds can be compared by rank."""
    odds = np.full((len(x), 1), np.nan)
    for fit, test in GroupKFold(FOLDS, shuffle=True, random_state=0).split(x, wrong, groups):
        weight, bias = fitted(x[fit], wrong[fit], "classification", 1.0)
        scale = (x[fit] @ weight + bias).std()
        odds[test] = (x[test] @ weight + bias - (x[fit] @ weight + bias).mean()) / (scale if scale > 0 else 1.0)
    return odds


def detection_rows(found: list[Read], seed: int) -> list[dict[str, Any]]:
    """AUROC of every set of predictors, its interval over molecules, and what it has over `SIMPLE`, paired."""
    columns, wrong, molecule = predictors(found)
    about = {"tokens": len(wrong), "wrong": int(wrong.sum()), "molecules": len(np.unique(molecule))}
    if wrong.sum() < LEAST:
        return [{"predictors": "–", **about, "reason": f"fewer than {LEAST} confident errors"}]
    weights = group_weights([str(m) for m in molecule], DRAWS, seed)
    sets: dict[str, tuple[str, ...]] = {
        "entropy and max-probability": SIMPLE, "depth score": DEPTH, "all five": (*SIMPLE, *DEPTH),
        **{name: (name,) for name in (*DEPTH, *SIMPLE)},
    }  # fmt: skip
    draws = {}
    for title, names in sets.items():
        x = np.concatenate([columns[name] for name in names], 1)
        draws[title] = auroc(held_out(x, wrong, molecule), wrong.astype(float), weights)
    rng, every = np.random.default_rng(seed), np.concatenate([columns[n] for n in DEPTH], 1)
    null = []
    for _ in range(20):
        mixed = rng.permutation(wrong)
        null.append(auroc(held_out(every, mixed, molecule), mixed.astype(float), np.ones((1, len(mixed))))[0])
    rows, base = [], draws["entropy and max-probability"]
    for title, values in draws.items():
        gain = values - base
        rows.append({
            "predictors": title, **about, "auroc": float(values[0]), "auroc_ci": interval(values[1:]),
            "gain": float(gain[0]), "gain_ci": interval(gain[1:]),
        })  # fmt: skip
    shuffled = np.array(null)
    rows.append({
        "predictors": "depth score, shuffled labels", **about, "auroc": float(shuffled.mean()),
        "auroc_ci": interval(shuffled), "gain": None, "gain_ci": None,
    })  # fmt: skip
    return rows


@study("depth_score", "molm: do confident errors still change in the last layers? Against entropy and max-probability")
def depth_score(setting: Setting) -> Outcome:
    n_molecules, n_sites = (60, 12) if setting.quick else (600, 24)
    subject, rng, found = load_subject(SUBJECT), np.random.default_rng(setting.seed), []
    for text in setting.progress(molecules(subject, n_molecules, setting.seed), "reading layers"):
        batch = subject.tokenize([text])
        sites = np.flatnonzero(~subject.special(batch.ids[0]).cpu().numpy())
        chosen = rng.permutation(sites)[:n_sites].tolist()
        found.append(read(subject, batch, sorted(chosen)))
    right = np.concatenate([r.right for r in found])
    depth = np.concatenate([r.depth for r in found])
    kinds = {"right": right, "wrong": ~right}
    levels = [
        {"prediction": name, "tokens": int(rows.sum()), "depth": float(depth[rows].mean()) if rows.any() else None,
         "depth_ci": mean_interval(depth[rows], setting.seed)}
        for name, rows in kinds.items()
    ]  # fmt: skip
    notes = (
        "depth in nats; its intervals here are over tokens. AUROC: of wrong among confident predictions, intervals "
        f"over molecules; gain: over entropy and max-probability, paired. Confident: largest p ≥ {CONFIDENT}.",
    )
    return Outcome({"detection": detection_rows(found, setting.seed), "levels": levels}, notes)
