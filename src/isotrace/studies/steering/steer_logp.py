"""Is molm steered towards Crippen logP, more than random directions of equal dose steer it?

Labels are computed, so the judge is the property itself. Molecules are those of the packaged lipophilicity table, whose
measured labels are not looked at; scaffolds are dealt to the direction, the dose and what is told.
"""

from typing import Any

import numpy as np
from rdkit.Chem import Crippen

from isotrace.domains.molecule.tokens import parse
from isotrace.steering.contrast import Contrast
from isotrace.steering.trials.judge import Exact
from isotrace.steering.trials.trial import Trial, TrialSettings, dose_row, trial, worst
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.subject import load_subject

SUBJECT, LAYERS = "bundled:molm", (1, 2)
METHODS = {
    True: ("difference_in_means",),
    False: ("difference_in_means", "control_vector", "probe", "linear_transport"),
}
SIZES = {True: (300, 4, 2, 2), False: (2_000, 16, 4, 20)}
"""Molecules, starts, designs of each, random twins."""
TOLD = ("dose", "alpha", "effect", "ci", "starts", "valid", "degenerate")
NEED_MATCHED = ("linear_transport",)
"""What compares two sets, in which confounds are matched."""


def logp(text: str) -> float:
    return float(Crippen.MolLogP(parse(text)))  # pyright: ignore[reportAttributeAccessIssue]


@study("steer_logp", "molm steered towards Crippen logP, beside random directions of equal dose")
def run(setting: Setting) -> Outcome:
    n, n_starts, n_designs, n_twins = SIZES[setting.quick]
    subject, texts = load_subject(SUBJECT), bundled_table("lipophilicity")["smiles"].to_list()
    chosen = [texts[i] for i in np.random.default_rng((setting.seed, 17)).permutation(len(texts))[:n]]
    contrast = Contrast.of(subject, chosen, [logp(text) for text in chosen])
    table, drifts = [], []
    for method in METHODS[setting.quick]:
        settings = TrialSettings(
            method, LAYERS, "match" if method in NEED_MATCHED else "residual", n_designs=n_designs, n_starts=n_starts,
            n_twins=n_twins, seed=setting.seed,
        )  # fmt: skip
        found = trial(subject, contrast, settings, exact=Exact(logp), progress=setting.progress)
        table += rows(method, found, setting.seed)
        moved = [f"{row['name']} {row['value']:+.2f}" for row in worst(found.drift)]
        drifts.append({"method": method} | {f"{i}": said for i, said in enumerate(moved, 1)})
    return Outcome({"doses": table, "drift": drifts}, notes(table))


def rows(method: str, found: Trial, seed: int) -> list[dict[str, Any]]:
    """One for every dose."""
    made, twins = [], found.twins[np.isfinite(found.twins)]
    for arm in found.arms[1:]:
        here = arm is found.best and bool(len(twins))
        row = {name: value for name, value in dose_row(arm, seed).items() if name in TOLD}
        beside = {"twins_mean": float(twins.mean()), "twins_sd": float(twins.std(ddof=1)), "p": found.p} if here else {}
        made.append({"method": method} | row | dict.fromkeys(("twins_mean", "twins_sd", "p")) | beside)
    return made


def notes(table: list[dict[str, Any]]) -> tuple[str, ...]:
    told = [row for row in table if row["p"] is not None]
    beat = [row["method"] for row in told if row["ci"][0] > 0 and row["p"] <= 0.05]
    lost = [row["method"] for row in told if row["method"] not in beat]
    return (
        "Change of computed logP from the unsteered designs of the same start, mean and 95 % interval over starts.",
        f"Beyond random directions at the largest dose: {', '.join(beat) or 'none'}; not: {', '.join(lost) or 'none'}.",
    )
