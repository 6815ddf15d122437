"""The card of one trace: drawing, prediction, one sentence, and how near the circuit comes to the model."""

from collections.abc import Mapping
from typing import Any

from isotrace.report.card.layout import BAR, MARGIN, WIDTH, Row, bars, card, foot, head, legend, placed, sentence
from isotrace.report.card.words import fitted, heading, legible, shortened, word
from isotrace.report.figures import COLOURS, GREY, INK
from isotrace.report.page import interval, number
from isotrace.report.trace.finding import finding

_LEFT, _RIGHT, _HALF = MARGIN, 632, WIDTH - MARGIN - 632
SMALL = 16


def trace_card(summary: Mapping[str, Any], drawing: str) -> str:
    """SVG of the card. `summary`: what `isotrace trace --json` prints, NaN as null; `drawing`: the signed one."""
    target, seen, circuit, unit = summary["target"], summary["picture"], summary["circuit"], summary["target"]["unit"]
    name = summary["name"] if summary["name"] and legible(summary["name"]) else summary["input"]
    told = said(summary)
    end = max((abs(u[seen["shown"]] or 0.0) for u in summary["units"]), default=0.0)
    parts = [
        head(name, "" if name == summary["input"] else summary["input"], target["description"]),
        sentence(told),
        placed(drawing, _LEFT, 226, _RIGHT - _LEFT - 40, 268),
        legend(end, unit, _LEFT, 510, _RIGHT - _LEFT - 40),
        fitted(_beside(seen, summary["element"]), _RIGHT - _LEFT - 40, 44, (SMALL, 14)).svg(_LEFT, 532, GREY),
        *_prediction(target, seen, circuit, summary["element"]),
        heading(_RIGHT, 368, f"Distance to the model's value, {unit}", _HALF, (18, 16, 14)),
        bars(_rows(circuit), _RIGHT, 380, _HALF, 28),
        fitted(_ratio(circuit), _HALF, 60, (SMALL, 14)).svg(_RIGHT, 500, GREY),
        foot((summary["subject"], summary["dictionary"], target["name"])),
    ]
    return card(f"{name}: {told}", parts)


def said(summary: Mapping[str, Any]) -> str:
    """The sentence: which groups raise and lower the prediction, which of them the picture colours the other way round,
    and what takes that back; or, where spellings differ by more than is explained, that."""
    if summary["picture"]["unsettled"]:
        return summary["picture"]["unsettled"]
    found = finding(summary)
    told = [f"{found.groups[0].upper()}{found.groups[1:]}."]
    told += [found.colours] if found.colours else []
    return " ".join([*told, found.taken_back]).rstrip()


def _prediction(
    target: Mapping[str, Any], seen: Mapping[str, Any], circuit: Mapping[str, Any], element: str
) -> list[str]:
    chance = "" if target["probability"] is None else f" (probability {number(target['probability'])})"
    if seen["sd"] is None:
        over = "read in one spelling only" if element == "atom" else "read as written"
    else:
        over = f"{number(seen['mean'])} ± {number(seen['sd'])} over {seen['spellings']} spellings (mean ± SD)"
    without = "set to zero" if circuit["ablation"] == "zero" else "at its mean"
    return [
        heading(_RIGHT, 264, f"{number(target['value'])} {target['unit']}{chance}", _HALF, (36, 32, 28, 24, 20)),
        word(_RIGHT, 294, shortened(over, 20, _HALF), 20, INK),
        word(_RIGHT, 320, f"told against {number(circuit['empty'])}, with every feature {without}", 18, GREY),
    ]


def _beside(seen: Mapping[str, Any], element: str) -> str:
    mean = f", mean over {seen['spellings']} spellings" if seen["spellings"] > 1 else ""
    if seen["shown"] == "hidden":
        return f"What hiding each {element} takes from the target, measured{mean}."
    if seen["hidden_reason"] is None:
        rank = f"ρ = {number(seen['hidden_spearman'])} {interval(seen['hidden_spearman_ci'])}"
        return f"What each {element} adds, linearised{mean}. Ranks against hiding each, measured: {rank}."
    return f"What each {element} adds, linearised{mean}. Not set beside a measurement: {seen['hidden_reason']}."


def _rows(circuit: Mapping[str, Any]) -> list[Row]:
    control, neurons, n = circuit["control"], circuit["neurons"], number(circuit["n_features"])
    low, high = control["error_ci"]
    ends = None if low is None or high is None else (low, high)
    rows = [
        Row(f"circuit, {n} features", circuit["error"], BAR),
        Row(f"random, n = {control['n']}", control["error_mean"], ends=ends),
        Row("as many neurons", neurons["error"], COLOURS[7]),
        Row("no feature", abs(circuit["empty"] - circuit["full"])),
    ]
    return [row for row in rows if row.value is not None]


def _ratio(circuit: Mapping[str, Any]) -> str:
    """The share that the circuit keeps, or why there is none, and why it is no circuit, where it is none."""
    found = []
    if circuit["reason"] is not None:
        found.append(f"No small circuit reproduces this prediction: {circuit['reason']}.")
    if circuit["kept"] is not None:
        found.append(f"Of what all features do it keeps {number(circuit['kept'])}.")
    else:
        moved = abs(circuit["full"] - circuit["empty"])
        found.append(
            f"No share is given: all features together move it by {number(moved)}, no more than random circuits "
            f"differ ({number(circuit['control']['spread'])})."
        )
    return " ".join(found)
