"""Known and not done: what can be read of an operation from the states, less what the output does with it.

An operation is a choice among a few tokens at a masked place: which ring digit closes here, branch or end of branch,
which atom. Of each layer's state at that place a logistic regression, fitted on other molecules, says which; the
output says it by the largest logit among the same tokens. gap = accuracy of the readout − accuracy of the output;
selectivity = accuracy of the readout − that of one fitted on shuffled labels, the control task (Hewitt and Liang 2019).
A large gap of a selective readout = represented, not executed. The published notion is qualitative; this form is ours.
"""

from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GroupKFold

from isotrace.probing.linear import fitted
from isotrace.stats.bootstrap import group_weights, interval
from isotrace.stats.metrics import accuracy
from isotrace.studies.network import molecules
from isotrace.studies.study import Outcome, Setting, study
from isotrace.subjects.heads.likelihoods import masked_copies
from isotrace.subjects.subject import Batch, Subject, load_subject

SUBJECT = "bundled:molm"
OPERATIONS: dict[str, tuple[str, ...]] = {
    "ring digit to close": ("1", "2", "3", "4"), "branch or its end": ("(", ")"),
    "which atom": ("C", "N", "O", "c", "n")
}  # fmt: skip
CLOSES = "ring digit to close"
FOLDS, DRAWS, STRENGTH, LEAST = 5, 1_000, 0.1, 10
"""Folds; bootstrap draws; C of the readouts; samples of a class below which it is left out."""


def readout(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The class `[n]` that readouts of other groups give to `x [n, d]`; `y [n]` counts from 0."""
    said = np.full(len(y), -1)
    for fit, test in GroupKFold(FOLDS, shuffle=True, random_state=0).split(x, y, groups):
        weight, bias = fitted(x[fit], y[fit], "classification", STRENGTH)
        scores, known = x[test] @ weight + bias, np.unique(y[fit])
        said[test] = known[(scores[:, 0] > 0).astype(int) if len(known) == 2 else scores.argmax(1)]
    return said


def gap_rows(
    states: np.ndarray, outputs: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """A row per layer of `states [layers, n, d]`; `outputs [n, classes]` are the logits of the classes, `groups [n]`
    the molecule of each sample. Intervals over molecules; gap and selectivity are paired."""
    weights = group_weights([str(g) for g in groups], DRAWS, seed)
    rng, rows = np.random.default_rng(seed), []

    def hits(said: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return accuracy((said == truth).astype(float)[:, None], truth, weights)

    output = hits(outputs.argmax(1), y)
    mixed = rng.permutation(y)
    for layer, x in enumerate(states):
        probe, control = hits(readout(x, y, groups), y), hits(readout(x, mixed, groups), mixed)
        row: dict[str, Any] = {"layer": layer, "samples": len(y), "molecules": len(np.unique(groups))}
        parts = {"probe": probe, "output": output, "gap": probe - output, "selectivity": probe - control}
        for name, draws in parts.items():
            row |= {name: float(draws[0]), f"{name}_ci": interval(draws[1:])}
        rows.append(row)
    return rows


def places(subject: Subject, batch: Batch, operation: str) -> list[tuple[int, int]]:
    """(position, class) of the tokens of a batch of one that are of the operation. A ring digit closes where the same
    digit stands an odd number of times before it."""
    tokens, classes, found = subject.tokens(batch.ids[0]), OPERATIONS[operation], []
    for place, token in enumerate(tokens):
        if token in classes and (operation != CLOSES or tokens[:place].count(token) % 2 == 1):
            found.append((place, classes.index(token)))
    return found


@torch.no_grad()
def states_at(subject: Subject, batch: Batch, sites: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(`[layers, sites, d_model]` behind every layer, logits `[sites, vocabulary]`), each site of a batch of one masked
    alone and read at its own place."""
    copies, rows = masked_copies(subject, batch, [[site] for site in sites]), torch.arange(len(sites))
    at = [subject.reading_position(site) for site in sites]
    layers = range(1, subject.n_layers + 1)
    states = subject.hidden(copies.ids, copies.mask, layers)[rows, at].unflatten(-1, (len(layers), -1))
    return states.transpose(0, 1).cpu().numpy(), subject.head(states[:, -1]).cpu().numpy()


@study("execution_gap", "molm: what can be read of an operation from its states, less what its output does")
def execution_gap(setting: Setting) -> Outcome:
    n_molecules, per_molecule = (120, 4) if setting.quick else (780, 12)
    subject, rng, rows, notes = load_subject(SUBJECT), np.random.default_rng(setting.seed), [], []
    batches = [subject.tokenize([text]) for text in molecules(subject, n_molecules, setting.seed)]
    for operation, classes in OPERATIONS.items():
        states, outputs, y, groups = [], [], [], []
        ids = [subject.token_id(token) for token in classes]
        for group, batch in setting.progress(list(enumerate(batches)), f"reading: {operation}"):
            every = places(subject, batch, operation)
            chosen = [every[i] for i in sorted(rng.permutation(len(every))[:per_molecule].tolist())]
            if chosen:
                found, logits = states_at(subject, batch, [site for site, _ in chosen])
                states.append(found)
                outputs.append(logits[:, ids])
                y += [kind for _, kind in chosen]
                groups += [group] * len(chosen)
        truth, counts = np.array(y), np.bincount(y, minlength=len(classes))
        kept = counts[truth] >= LEAST
        if gone := [c for c, n in zip(classes, counts, strict=True) if n < LEAST]:
            notes.append(f"{operation}: {', '.join(gone)} stand at fewer than {LEAST} places and are left out.")
        parts = np.concatenate(states, 1)[:, kept], np.concatenate(outputs)[kept], truth[kept], np.array(groups)[kept]
        most = float(counts.max() / kept.sum())
        rows += [{"operation": operation, "majority": most, **row} for row in gap_rows(*parts, setting.seed)]
    notes.append("Layers count from 0, states stand behind them. The output chooses among the tokens of the operation.")
    return Outcome({"gaps": rows}, tuple(notes))
