"""What a plan of interventions changes in some sequences."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from isotrace.base.errors import InputError
from isotrace.datasets.inputs import read_inputs, rejects_frame
from isotrace.interventions.plan import Intervention, Plan
from isotrace.report.features import InterventionTable
from isotrace.subjects.subject import Subject, load_subject


def intervene(
    subject: str | Path | Subject, data: Any, plan: Plan | Iterable[Intervention | Plan], *, column: str | None = None
) -> InterventionTable:
    """Run every sequence of `data` as it is and under `plan`: `intervene(subject, ["CCO"], [Intervention(…)])`.

    `data`: a path, list, Series, table or molecules. Raises InputError where no row can be used.
    """
    subject = subject if isinstance(subject, Subject) else load_subject(subject)
    plan = plan if isinstance(plan, Plan) else Plan.of(*plan)
    rows, rejects = read_inputs(data, column=column)
    refused, parts = rejects.rows(), []
    for row in rows.rows(named=True):
        try:
            batch = subject.tokenize([row["sequence"]])
            clean, edited = (subject.run(batch, plan=p) for p in (None, plan))
        except InputError as error:
            refused.append((row["index"], row["sequence"], str(error)))
            continue
        change = (edited.final - clean.final)[0].norm(dim=-1) / clean.final[0].norm(dim=-1)
        n = len(change)
        table: dict[str, Any] = {
            "index": [row["index"]] * n, "position": range(n), "token": subject.tokens(batch.ids[0]),
            "change": change.tolist(), "kl": [None] * n, "clean": [None] * n, "edited": [None] * n,
        }  # fmt: skip
        if clean.logits is not None and edited.logits is not None:
            logs = [logits[0].log_softmax(-1) for logits in (clean.logits, edited.logits)]
            table["kl"] = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).tolist()
            table |= {k: subject.tokens(x.argmax(-1)) for k, x in zip(("clean", "edited"), logs, strict=True)}
        parts.append(pl.DataFrame(table, schema_overrides={"kl": pl.Float64, "clean": pl.String, "edited": pl.String}))
    if not parts:
        raise InputError(f"no sequence can be used; first reason: {refused[0][2] if refused else 'there is none'}")
    frame, left_out = pl.concat(parts), rejects_frame(refused)
    summary = {
        "subject": subject.source,
        "plan": plan.id if all(i.saved for i in plan) else None,
        "n_sequences": len(parts),
        "mean_change": frame["change"].mean(),
        "mean_kl": frame["kl"].mean(),
        "rejects": left_out.to_dicts(),
    }
    return InterventionTable(summary, tables={"intervention": frame, "rejects": left_out})
