"""A trial of steering as people meet it: verdict, dose and response beside random directions, designs drawn."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from difflib import SequenceMatcher
from html import escape
from typing import Any

import numpy as np
import polars as pl

from isotrace.base.result import Result
from isotrace.base.runs import to_jsonable
from isotrace.datasets.annotated import read
from isotrace.datasets.inputs import rejects_frame
from isotrace.domains.domain import Domain, Look, Reading
from isotrace.probing.validity import nearest
from isotrace.report.card.carded import shared
from isotrace.report.page import interval, number, render_page, template_text
from isotrace.report.steer.figure import response
from isotrace.stats.bootstrap import mean_interval
from isotrace.stats.metrics import spearman
from isotrace.steering.contrast import Contrast
from isotrace.steering.trials.trial import Arm, Trial, dose_row, worst
from isotrace.subjects.subject import Subject

DRAWN, ALPHA = 6, 0.05


class SteerResult(Result):
    """`summary` as docs/steering.md lists it; tables `designs`, `doses`, `twins` and `rejects`."""

    kind = "steer"

    def to_frame(self) -> pl.DataFrame:
        """The designs, one row each."""
        return self.tables["designs"]

    def told(self) -> Iterable[str]:
        yield self.summary["verdict"]
        yield from (f"warning: {warning}" for warning in self.summary["warnings"])

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        summary, run = self.summary, dict(manifest or {})
        title = f"Steering towards {summary['label']}"
        copies = {"verdict": summary["verdict"], "command": run.get("command", "")}
        page = summary | self.view | {
            "title": title,
            **shared(run, title, summary["verdict"], copies),
            "figure": response(summary["doses"], summary["twins"]["effects"], summary["judge"]["of"]),
            "created": run.get("started", ""),
            "command": run.get("command", ""),
        }  # fmt: skip
        return render_page("steer.html.j2", to_jsonable(page), script=template_text("copy.js"), data=None)

    def _repr_html_(self) -> str:
        figure = response(self.summary["doses"], self.summary["twins"]["effects"], self.summary["judge"]["of"])
        return f"<div>{figure}{''.join(f'<p>{escape(line)}</p>' for line in self.told())}</div>"


def steer_result(found: Trial, contrast: Contrast, subject: Subject) -> SteerResult:
    """`contrast`: all that was read."""
    plain, arms = found.arms[0], found.arms[1:]
    doses = [dose_row(arm, found.settings.seed) for arm in found.arms]
    reached = [arm for arm in arms if arm.reached is not None]
    twins = found.twins[np.isfinite(found.twins)]
    judged = dict(zip(("value", "low", "high"), found.judge.checked, strict=True))
    of = f"share of {contrast.classes[-1]}" if contrast.classes else contrast.label
    summary: dict[str, Any] = {
        "label": contrast.label,
        "subject": subject.source,
        "domain": found.domain.name,
        "method": found.edits.method,
        "settings": dict(found.edits.settings),
        "confounds_held": found.settings.confounds,
        "generator": plain.designs.method if plain.designs is not None else None,
        "n": {
            "sequences": len(contrast),
            "positive": len(contrast.positive),
            "negative": len(contrast.negative),
            "fitted": int((found.contrast.side != 0).sum()),
            "starts": len(found.starts),
        },
        "judge": judged | {"metric": found.judge.metric, "of": of},
        "dose": None if found.edits.dose is None else asdict(found.edits.dose),
        "doses": doses,
        "rising": rising(reached),
        "twins": {"n": len(twins), "effects": twins.tolist(), "lost": len(found.lost), "p": found.p},
        "confounds": worst(found.edits.confounds),
        "drift": worst(found.drift),
    }
    summary["warnings"] = warnings(found, summary)
    summary["verdict"] = verdict(summary, found.best, found.settings.seed)
    rejects = rejects_frame(list(found.rejects))
    summary |= {"rejects": rejects.head(20).to_dicts(), "n_rejected": rejects.height}
    tables = {
        "designs": pl.concat([designs_of(found, arm) for arm in found.arms if arm.designs is not None]),
        "doses": pl.DataFrame([{k: v for k, v in row.items() if k != "ci"} for row in doses], infer_schema_length=None),
        "twins": pl.DataFrame({"effect": found.twins}),
        "rejects": rejects,
    }
    return SteerResult(to_jsonable(summary), to_jsonable({"drawn": drawn(found, subject)}), tables)


def rising(arms: list[Arm]) -> dict[str, Any]:
    """Spearman of dose and effect over the doses of a start, its median over starts: NaN for fewer than three doses."""
    if len(arms) < 3:
        return {"median": float("nan"), "starts": 0}
    table = np.stack([arm.effects for arm in arms], 1)
    table, doses = table[np.isfinite(table).all(1)], np.asarray([arm.dose for arm in arms])
    one = np.ones((1, len(doses)))
    found = [float(spearman(row[:, None], doses, one)[0]) for row in table]
    known = [value for value in found if np.isfinite(value)]
    return {"median": float(np.median(known)) if known else float("nan"), "starts": len(known)}


def warnings(found: Trial, summary: Mapping[str, Any]) -> list[str]:
    said, judge, best, plain = [], summary["judge"], found.best, found.arms[0]
    bar = 0.5 if judge["metric"] == "auroc" else 0.0
    if not judge["low"] > bar:
        said.append(
            f"The judge does not know the property ({judge['metric']} {number(judge['value'])} "
            f"{interval((judge['low'], judge['high']))} on held-out sequences): its numbers say nothing of designs."
        )
    said += [f"No dose of {number(arm.dose)}: {arm.why}" for arm in found.arms if arm.why is not None]
    if best.degenerate > plain.degenerate + 0.05:
        said.append(
            f"At {number(best.dose)} nats {best.degenerate:.0%} of the valid designs are degenerate, unsteered "
            f"{plain.degenerate:.0%}: outside the safe window."
        )
    if found.lost:
        said.append(f"{len(found.lost)} of the random directions do not reach {number(best.dose)} nats.")
    said += [
        f"The direction follows a confound: cosine {number(row['value'])} with {row['name']}."
        for row in summary["confounds"][:1] if abs(row["value"]) > 0.5
    ]  # fmt: skip
    said.append("No perplexity under another model was measured: whether designs stay likely is not known.")
    return said


def verdict(summary: Mapping[str, Any], best: Arm, seed: int) -> str:
    """Whether the edit moves what the judge says, and more than random directions of equal dose do."""
    known = best.effects[np.isfinite(best.effects)]
    twins, of = summary["twins"], summary["judge"]["of"]
    if len(known) < 2:
        return f"Too few starts gave valid designs at {number(best.dose)} nats to say whether {of} moves."
    low, high = mean_interval(known, seed)
    moved = (
        f"At {number(best.dose)} nats the judge's {of} moves by {number(best.effect)} {interval((low, high))} over "
        f"{len(known)} starts"
    )
    if not twins["n"]:
        return f"{moved}; no random direction was tried."
    beside = f"{twins['n']} random directions of equal dose by {number(float(np.mean(twins['effects'])))} on average"
    if low > 0 and twins["p"] <= ALPHA:
        return f"{moved}, {beside} and none or few as far (p {number(twins['p'])})."
    if low > 0:
        return f"{moved}, but so do random directions: {beside} (p {number(twins['p'])})."
    return f"Nothing shows that steering works: {moved[0].lower()}{moved[1:]}, {beside} (p {number(twins['p'])})."


def designs_of(found: Trial, arm: Arm) -> pl.DataFrame:
    """`similarity`: Tanimoto of the domain's fingerprints of start and design, null where either has none."""
    assert arm.designs is not None
    rows = []
    for row, value in zip(arm.designs.rows, arm.values.tolist(), strict=True):
        start = found.starts[row.start]
        rows.append(
            {"dose": arm.dose, "start": row.start, "from": start, "sequence": row.sequence, "valid": row.valid,
             "why": row.why, "judged": value if row.valid else None,
             "similarity": similarity(found.domain, start, row.sequence) if row.valid else None}
        )  # fmt: skip
    schema = {"dose": pl.Float64, "start": pl.Int64, "from": pl.String, "sequence": pl.String, "valid": pl.Boolean,
              "why": pl.String, "judged": pl.Float64, "similarity": pl.Float64}  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def similarity(domain: Domain, one: str, other: str) -> float | None:
    try:
        domain.check(one)
        prints = np.asarray(domain.fingerprints([one, other]), np.float64)
    except ValueError:
        return None
    return float(nearest(prints, np.arange(2))[0])


def drawn(found: Trial, subject: Subject) -> list[dict[str, Any]]:
    """Of the first starts: drawn, beside the first valid design of the largest dose with what is new in it marked."""
    best, shown = found.best, []
    assert best.designs is not None
    for start, text in enumerate(found.starts):
        pairs = zip(best.designs.rows, best.values.tolist(), strict=True)
        row, value = next(((r, v) for r, v in pairs if r.start == start and r.valid), (None, None))
        if row is None or len(shown) == DRAWN or subject.objective == "causal":
            continue
        before, after = (read(subject, found.domain, one)[1] for one in (text, row.sequence))
        new = changed(before, after)
        shown.append(
            {"start": found.domain.draw_elements(before, {}, Look(small=True)), "text": text,
             "design": found.domain.draw_elements(after, dict.fromkeys(new, 1.0), Look(small=True, scale=1.0)),
             "sequence": row.sequence, "judged": value, "changed": len(new)}
        )  # fmt: skip
    return shown


def changed(before: Reading, after: Reading) -> list[int]:
    """Elements of `after` written by tokens that do not stand in `before` in the same order."""
    texts = [[unit.text for unit in reading.units] for reading in (before, after)]
    kept = {b + i for _, b, n in SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks() for i in range(n)}
    return sorted({e for place, written in enumerate(after.elements) if place not in kept for e in written})
