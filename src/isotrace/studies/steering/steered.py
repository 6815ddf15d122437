"""Real subjects steered towards properties that are known, beside random directions of equal dose: one study a task.

steer_logp       molm, masked, towards Crippen logP: labels are computed, so the judge is the property itself
steer_annalog    ANNalog, which writes analogs of what it reads, towards the same
steer_antiberty  AntiBERTy from heavy chains of germline family IGHV1 towards IGHV3; a forest judges

Groups (scaffolds, clusters of chains) are dealt to the direction, the dose and what is told. Layers were chosen by the
effect on starts of the second part, which nothing is told of. Length alone is held fixed: logP and the family of a V
gene are composition for the most part, so holding kinds of tokens would hold the property. What composition leaves of
an effect is told beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from rdkit.Chem import Crippen

from isotrace.domains.molecule.tokens import parse
from isotrace.interventions.where import Which
from isotrace.steering.contrast import Contrast
from isotrace.steering.trials.judge import Exact
from isotrace.steering.trials.settings import TrialSettings
from isotrace.steering.trials.table import dose_row, worst
from isotrace.steering.trials.trial import Trial, trial
from isotrace.steering.trials.twins import NULLS, USUAL, Null
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.studies.task_circuits import ANTIBERTY
from isotrace.subjects.subject import Subject, load_subject

TOLD = ("dose", "alpha", "effect", "ci", "first_round", "starts", "valid", "degenerate")
NEED_MATCHED = ("linear_transport", "probe")
"""What compares two sets, in which confounds are matched."""
DOSES = (0.025, 0.05, 0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Way:
    """`layers`: of an encoder–decoder those of the encoder first. `where`: tokens, None: see `TrialSettings`. `nulls`:
    what it is compared with; one that does not beat random directions needs no other."""

    method: str
    layers: tuple[int, ...]
    where: Which | None = None
    nulls: tuple[Null, ...] = ("random",)

    @property
    def row(self) -> dict[str, Any]:
        return {"method": self.method, "layers": ", ".join(map(str, self.layers)), "edited": self.where}


@dataclass(frozen=True)
class Task:
    """`read(subject, n, seed)`: the contrast of at most `n` sequences. `exact`: whether logP judges. `sizes`: those
    sequences, starts that are told and for development, designs of each, random twins, tokens a dose is measured at;
    quick and full."""

    about: str
    subject: str
    read: Callable[[Subject, int, int], Contrast]
    exact: bool
    of: str
    ways: tuple[Way, ...]
    sizes: tuple[tuple[int, int, int, int, int, int], tuple[int, int, int, int, int, int]]
    generator: str | None = None


def logp(text: str) -> float:
    return float(Crippen.MolLogP(parse(text)))  # pyright: ignore[reportAttributeAccessIssue]


def lipophilic(subject: Subject, n: int, seed: int) -> Contrast:
    """Molecules of the packaged lipophilicity table, whose measured labels are not looked at, with their logP."""
    texts = bundled_table("lipophilicity")["smiles"].to_list()
    chosen = [texts[i] for i in np.random.default_rng((seed, 17)).permutation(len(texts))[:n]]
    return Contrast.of(subject, chosen, [logp(text) for text in chosen])


def heavy(subject: Subject, n: int, seed: int) -> Contrast:
    """Heavy chains of the packaged antibodies whose V gene is of family IGHV1 or IGHV3, which is the positive side."""
    family = pl.col("v_gene").str.extract(r"^(IGHV\d+)").alias("family")
    table = bundled_table("antibodies").with_columns(family).filter(pl.col("family").is_in(["IGHV1", "IGHV3"]))
    table = table.select("sequence", "family").sample(min(n, table.height), seed=seed)
    return Contrast.read(subject, table, "family", positive="IGHV3")


TASKS = {
    "steer_logp": Task(
        "molm steered towards Crippen logP, beside random directions of equal dose",
        "bundled:molm", lipophilic, True, "computed logP",
        (Way("difference_in_means", (0,), nulls=USUAL), Way("difference_in_means", (0,), "real"), Way("probe", (0,))),
        ((300, 4, 16, 2, 2, 6), (2_000, 12, 16, 3, 20, 12)),
    ),
    "steer_annalog": Task(
        "ANNalog steered towards Crippen logP, beside random directions of equal dose",
        "pypi:annalog", lipophilic, True, "computed logP",
        (Way("difference_in_means", (1,), nulls=USUAL), Way("difference_in_means", (4,)),
         Way("linear_transport", (1,)), Way("probe", (1,))),
        ((300, 4, 8, 4, 2, 6), (2_000, 16, 16, 4, 20, 12)),
    ),
    "steer_antiberty": Task(
        "AntiBERTy steered from IGHV1 towards IGHV3, beside random directions of equal dose",
        ANTIBERTY, heavy, False, "share of trees that say IGHV3", (Way("difference_in_means", (5,), nulls=USUAL),),
        ((200, 3, 8, 2, 2, 2), (400, 12, 16, 2, 20, 4)), "mask_predict",
    ),
}  # fmt: skip


def run(task: Task, setting: Setting) -> Outcome:
    n, n_starts, n_others, n_designs, n_twins, n_places = task.sizes[0 if setting.quick else 1]
    subject = load_subject(task.subject)
    contrast = task.read(subject, n, setting.seed)
    table, controls, drifts, reactions = [], [], [], []
    for way in task.ways[:1] if setting.quick else task.ways:
        settings = TrialSettings(
            way.method, way.layers, "match" if way.method in NEED_MATCHED else "residual", DOSES, n_designs=n_designs,
            n_starts=n_starts, n_development=n_others, n_twins=n_twins, generator=task.generator, seed=setting.seed,
            hold=("length",), where=way.where, n_places=n_places,
        )  # fmt: skip
        where = {"nulls": way.nulls, "work": setting.work / "trials", "progress": setting.progress}
        found = trial(subject, contrast, settings, exact=Exact(logp) if task.exact else None, **where)
        table += [way.row | row for row in rows(found, setting.seed)]
        controls.append(way.row | control(found))
        moved = [f"{row['name']} {row['value']:+.2f}" for row in worst(found.drift)]
        drifts.append(way.row | {f"{i}": said for i, said in enumerate(moved, 1)})
        reactions += [way.row | row for row in reacted(found)]
    tables = {"doses": table, "control": controls, "drift": drifts, "reaction": reactions}
    return Outcome(tables, notes(table, task.of))


def rows(found: Trial, seed: int) -> list[dict[str, Any]]:
    """One for every dose. `claimed`: the largest that is safe on development starts."""
    made = []
    for arm in found.arms[1:]:
        row = {name: value for name, value in dose_row(arm, seed).items() if name in TOLD}
        safe = arm.designs is not None and found.safety.holds(arm.dose)
        beside = {name: value for name, value in found.twins.beside(arm).items() if name not in NULLS}
        made.append(row | beside | {"safe": safe, "claimed": arm is found.best})
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


def reacted(found: Trial) -> list[dict[str, Any]]:
    """At the claimed dose, the edit beside a random twin: shares that detectors find at 5 % false alarms, that are left
    behind the last layer and set back; none where no dose is safe."""
    if found.reaction is None:
        return []
    told = {f"found by {name}": one for name, one in found.reaction.noticed.items()}
    told |= {"left": found.reaction.left, "set back": found.reaction.reversed}
    return [{"share": name, "edit": one.own, "random": one.twin, "why": one.why} for name, one in told.items()]


def named(row: dict[str, Any]) -> str:
    tokens = "" if row["edited"] is None else f", {row['edited']} tokens"
    return f"{row['method']} at layer {row['layers']}{tokens}"


def notes(table: list[dict[str, Any]], of: str) -> tuple[str, ...]:
    beat, lost = [], []
    for name in dict.fromkeys(named(row) for row in table):
        safe = [row for row in table if named(row) == name and row["safe"]]
        several = sum(row["ci"][0] > 0 for row in safe) > 1  # an effect at a single dose is none
        told = any(row["claimed"] and row["ci"][0] > 0 and (row["p"] or 1.0) <= 0.05 for row in safe)
        (beat if several and told else lost).append(name)
    return (
        f"Change of {of} from the unsteered designs of the same start, mean and 95 % interval over starts.",
        "Doses are safe by degenerate designs on development starts; perplexity under another model is not checked.",
        f"Beyond what it was compared with at the largest safe dose: {'; '.join(beat) or 'none'}; "
        f"not: {'; '.join(lost) or 'none'}.",
    )


for name, task in TASKS.items():
    study(name, task.about)(partial(run, task))
