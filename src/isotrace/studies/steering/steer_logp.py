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
from isotrace.steering.trials.settings import TrialSettings
from isotrace.steering.trials.table import dose_row, worst
from isotrace.steering.trials.trial import Trial, trial
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.subject import load_subject

SUBJECT, LAYERS = "bundled:molm", (1, 2)
METHODS = {
    True: ("difference_in_means",),
    False: ("difference_in_means", "control_vector", "probe", "linear_transport"),
}
SIZES = {True: (300, 4, 16, 2, 2), False: (2_000, 16, 32, 4, 20)}
"""Molecules, starts that are told and for development, designs of each, random twins."""
TOLD = ("dose", "alpha", "effect", "ci", "starts", "valid", "degenerate")
NEED_MATCHED = ("linear_transport",)
"""What compares two sets, in which confounds are matched."""


def logp(text: str) -> float:
    return float(Crippen.MolLogP(parse(text)))  # pyright: ignore[reportAttributeAccessIssue]


@study("steer_logp", "molm steered towards Crippen logP, beside random directions of equal dose")
def run(setting: Setting) -> Outcome:
    n, n_starts, n_others, n_designs, n_twins = SIZES[setting.quick]
    subject, texts = load_subject(SUBJECT), bundled_table("lipophilicity")["smiles"].to_list()
    chosen = [texts[i] for i in np.random.default_rng((setting.seed, 17)).permutation(len(texts))[:n]]
    contrast = Contrast.of(subject, chosen, [logp(text) for text in chosen])
    table, controls, drifts = [], [], []
    for method in METHODS[setting.quick]:
        settings = TrialSettings(
            method, LAYERS, "match" if method in NEED_MATCHED else "residual", n_designs=n_designs, n_starts=n_starts,
            n_development=n_others, n_twins=n_twins, seed=setting.seed, twins_at="every",
        )  # fmt: skip
        where: dict[str, Any] = {"work": setting.work / "trials", "progress": setting.progress}
        found = trial(subject, contrast, settings, exact=Exact(logp), **where)
        table += rows(method, found, setting.seed)
        controls.append({"method": method} | control(found))
        moved = [f"{row['name']} {row['value']:+.2f}" for row in worst(found.drift)]
        drifts.append({"method": method} | {f"{i}": said for i, said in enumerate(moved, 1)})
    return Outcome({"doses": table, "control": controls, "drift": drifts}, notes(table))


def rows(method: str, found: Trial, seed: int) -> list[dict[str, Any]]:
    """One for every dose. `claimed`: the largest that is safe on development starts."""
    made = []
    for arm in found.arms[1:]:
        row = {name: value for name, value in dose_row(arm, seed).items() if name in TOLD}
        safe = arm.designs is not None and found.safety.holds(arm.dose)
        beside = {name: value for name, value in found.twins.beside(arm).items() if name != "twins"}
        made.append({"method": method} | row | beside | {"safe": safe, "claimed": arm is found.best})
    return made


def control(found: Trial) -> dict[str, Any]:
    """At the claimed dose: its order with the effect, and what composition leaves of it; None where none is safe."""
    made, order = found.composition, found.rising
    row: dict[str, Any] = {"rising": order["median"], "rising_ci": order["ci"]}
    for name in ("regressed", "without"):
        part = None if made is None else getattr(made, name)
        row[name] = None if part is None else part.effect
        row[f"{name}_ci"] = None if part is None else [*part.ci]
        row[f"{name}_kept"] = None if part is None else part.kept
        row[f"{name}_kept_ci"] = None if part is None else [*part.kept_ci]
    return row | {"tokens": None if made is None else " and ".join(made.tokens)}


def notes(table: list[dict[str, Any]]) -> tuple[str, ...]:
    methods = list(dict.fromkeys(row["method"] for row in table))
    beat = []
    for method in methods:
        safe = [row for row in table if row["method"] == method and row["safe"]]
        several = sum(row["ci"][0] > 0 for row in safe) > 1  # an effect at a single dose is none
        if several and any(row["claimed"] and row["ci"][0] > 0 and (row["p"] or 1.0) <= 0.05 for row in safe):
            beat.append(method)
    lost = [method for method in methods if method not in beat]
    return (
        "Change of computed logP from the unsteered designs of the same start, mean and 95 % interval over starts.",
        "Doses are safe by degenerate designs on development starts; perplexity under another model is not checked.",
        f"Beyond random directions at the largest safe dose: {', '.join(beat) or 'none'}; "
        f"not: {', '.join(lost) or 'none'}.",
    )
