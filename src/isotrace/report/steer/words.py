"""What a trial says in sentences: its verdict, and what to beware of."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from isotrace.report.page import interval, number, percent
from isotrace.stats.bootstrap import mean_interval
from isotrace.steering.trials.trial import Trial

ALPHA = 0.05
NULLS = {
    "random": "random directions",
    "covariance": "random directions within the data's covariance",
    "shuffled": "directions of shuffled labels",
}


def verdict(found: Trial, of: str) -> str:
    """Whether the edit moves what the judge says, and more than random directions of equal dose do. Read at the largest
    dose inside the safe window; an effect at a single dose is none (METHODS_STEERING §13)."""
    best, seed = found.best, found.settings.seed
    if best is None:
        return f"No dose is safe, so nothing is claimed: on development starts, {found.safety.window.ends}."
    if len(best.known) < 2:
        return f"Too few starts gave valid designs at {number(best.dose)} nats to say whether {of} moves."
    low, high = mean_interval(best.known, seed)
    moved = (
        f"At {number(best.dose)} nats the judge's {of} moves by {number(best.effect)} {interval((low, high))} over "
        f"{len(best.known)} starts"
    )
    known = {null: twins for null in found.twins.effects if len(twins := found.twins.at(best.dose, null))}
    if not known:
        return f"{moved}; no random direction was tried."
    null = max(known, key=lambda name: found.twins.p(best, name))  # the one that goes furthest
    twins, p = known[null], found.twins.p(best, null)
    beside = f"{len(twins)} {NULLS[null]} of equal dose by {number(float(np.mean(twins)))} on average"
    if not low > 0:
        return f"Nothing shows that steering works: {moved[0].lower()}{moved[1:]}, {beside} (p {number(p)})."
    if p > ALPHA and not (twins >= best.effect).any():
        return f"{moved}, {beside} and none as far, but they are too few to tell (p {number(p)})."
    if p > ALPHA:
        return f"{moved}, but so do {NULLS[null]}: {beside} (p {number(p)})."
    if sum(mean_interval(arm.known, seed)[0] > 0 for arm in found.safe) < 2:
        return f"{moved}, {beside} (p {number(p)}), but at this dose alone: an effect at a single dose is none."
    return f"{moved}, {beside} and none or few as far (p {number(p)})."


def warnings(found: Trial, summary: Mapping[str, Any]) -> list[str]:
    judge, best, safety = summary["judge"], found.best, found.safety
    said = []
    bar = 0.5 if judge["metric"] == "auroc" else 0.0
    if not judge["low"] > bar:
        said.append(
            f"The judge does not know the property ({judge['metric']} {number(judge['value'])} "
            f"{interval((judge['low'], judge['high']))} on held-out sequences): its numbers say nothing of designs."
        )
    said += [f"No dose of {number(arm.dose)}: {arm.why}" for arm in found.arms if arm.why is not None]
    if best is not None and safety.window.ends is not None:
        said.append(f"Nothing is claimed above {number(best.dose)} nats: on development starts, {safety.window.ends}.")
    at_best = [] if best is None else [null for null, dose, _ in found.twins.lost if dose == best.dose]
    said += [
        f"{count} of the {NULLS[null]} are not found or do not reach the claimed dose."
        for null, count in Counter(at_best).items()
    ]
    said += of_paths(found) + _of_composition(found, summary)
    said += [
        f"The direction follows a confound: cosine {number(row['value'])} with {row['name']}."
        for row in summary["confounds"][:1] if abs(row["value"]) > 0.5
    ]  # fmt: skip
    if safety.reader is None:
        said.append("The perplexity of designs under another model was not checked (--reader): whether they stay "
                    "likely is not known.")  # fmt: skip
    elif unread := sum(row.unread for row in safety.rows):
        share = unread / sum(row.valid for row in safety.rows)
        said.append(f"{safety.reader} cannot read {percent(share)} of the development designs: its perplexities are of "
                    "the others.")  # fmt: skip
    return said


def of_paths(found: Trial) -> list[str]:
    """Edits that steer along a path which the data do not take, see `response.dormant`."""
    if isinstance(found.dormant, str):
        return [f"Whether the edit takes a path that the data take was not checked: {found.dormant}"]
    return [
        f"Dormant path at {row.site}: moved along the edit by other sequences, predictions change by "
        f"{number(row.live[0])} {interval(row.live[1:])} of what the edit does per unit, and it goes "
        f"{number(row.reach)} times as far as they do."
        if row.reach < np.inf else f"Dormant path at {row.site}: no sequence moves along the edit, and it steers."
        for row in found.dormant if row.flagged
    ]  # fmt: skip


def _of_composition(found: Trial, summary: Mapping[str, Any]) -> list[str]:
    made = found.composition
    if made is None or found.best is None or not mean_interval(found.best.known, found.settings.seed)[0] > 0:
        return []
    names = {"length and counts of tokens": made.regressed}
    names |= {f"the inserted {' and '.join(made.tokens)}": made.without} if made.tokens else {}
    return [
        f"Without {name} the change is {number(part.effect)} {interval(part.ci)}: it may be composition alone."
        for name, part in names.items() if not part.ci[0] > 0
    ]  # fmt: skip
