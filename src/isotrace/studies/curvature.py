"""Curvature and landscape of molm: of its masked tokens, and of solubility as its shipped probe reads it.

Controls, not predictors: nobody has shown that any of these numbers tells which checkpoint transfers. Molecules are
from the training part of lipophilicity and of ESOL, which molm has seen. What is measured is kept, so that a run that
was stopped goes on.
"""

from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from isotrace.annotation.nulls.sources import untrained_subject
from isotrace.base.work import Memo, claimed
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.probe import load_probe
from isotrace.subjects.subject import load_subject
from isotrace.transfer.curvature import MEASURES, Loss, measure_all
from isotrace.transfer.curvature.subject_losses import masked_loss, parameters_of, task_loss

SUBJECT = "bundled:molm"


@dataclass(frozen=True)
class Size:
    """`masked`, `task`: measure → its settings, for the two losses; the untrained copy has those of `masked`."""

    molecules: int
    rows: int
    untrained: bool
    masked: dict[str, dict[str, Any]]
    task: dict[str, dict[str, Any]]


ALL = {name: {} for name in MEASURES} | {"density": {"starts": 3, "steps": 50}}
SIZES = {
    True: Size(
        16, 16, False,
        masked={
            "eigenvalues": {"largest": 3, "smallest": 0}, "trace": {"draws": 8}, "fisher": {"draws": 8},
            "sharpness": {"steps": 5}, "barrier": {},
            "relative": {"largest": 1, "smallest": 0, "basis": 10, "draws": 8},
        },
        task={"eigenvalues": {"largest": 1, "smallest": 0, "basis": 10}, "trace": {"draws": 8}, "fisher": {"draws": 8}},
    ),
    False: Size(512, 32, True, masked=ALL, task=ALL),
}  # fmt: skip
"""quick → what is measured."""


@study("curvature", "Curvature and landscape of molm's losses: eigenvalues, traces, sharpness, barriers")
def curvature(setting: Setting) -> Outcome:
    size, subject = SIZES[setting.quick], load_subject(SUBJECT)
    blank = untrained_subject(subject, setting.seed)
    texts = seen("lipophilicity", size.molecules)["smiles"].to_list()
    esol = seen("esol", size.molecules)
    labels = [float(text) for text in esol["measured_log_solubility_mol_per_l"]]
    masked = masked_loss(subject, texts, setting.seed, rows=size.rows)
    task = task_loss(subject, load_probe(subject, "esol")[0], esol["smiles"].to_list(), labels, rows=size.rows)
    jobs = [(masked, size.masked), (task, size.task)]
    if size.untrained:
        alone = {name: settings for name, settings in size.masked.items() if name != "barrier"}
        jobs.append((masked_loss(blank, texts, setting.seed, rows=size.rows), alone))
    rows = []
    with claimed(setting.work / "curvature", (subject, setting.seed, setting.quick)) as work:
        for loss, measures in jobs:
            memo = Memo(work, loss.name, size.molecules, size.rows, setting.seed)
            rows += measured(loss, measures, parameters_of(blank, loss), setting, memo)
    losses = [
        {"loss": loss.name, "parameters": len(loss.at), "examples": loss.n_examples, "left_out": len(loss.left_out)}
        for loss, _ in jobs
    ]
    return Outcome({"curvature": rows, "losses": losses}, notes(rows, size))


def measured(
    loss: Loss, measures: dict[str, dict[str, Any]], other: Any, setting: Setting, memo: Memo
) -> list[dict[str, Any]]:
    """Rows of all `measures`. Eigenvalues and trace are measured together, for what is derived from both."""
    both = [name for name in ("eigenvalues", "trace") if name in measures]
    groups = [both, *([name] for name in measures if name not in both)]
    rows = []
    for names in groups:
        settings = {name: measures[name] for name in names}

        def compute(names: list[str] = names, settings: dict[str, dict[str, Any]] = settings) -> list[dict[str, Any]]:
            found = measure_all(loss, names, setting.seed, setting.progress, other=other, settings=settings)
            return [asdict(row) for row in found]

        rows += memo.plain(f"{names} {settings}", compute)
    return rows


def seen(name: str, n: int) -> pl.DataFrame:
    """The first `n` rows of the training part."""
    table = bundled_table(name)
    return table.filter(table["split_scaffold"] == "train").head(n)


def notes(rows: list[dict[str, Any]], size: Size) -> tuple[str, ...]:
    found = [
        f"{size.molecules} molecules a loss; 15 % of the tokens are masked, all by the mask token.",
        "The barrier is to an untrained copy: a control that has to be high.",
        "Controls: rescaling weights changes all but the relative ones without changing the model.",
    ]
    found += [f"{row['loss']}: {row['quantity']}: {row['reason']}." for row in rows if row["reason"]]
    return tuple(found)
