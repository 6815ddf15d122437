"""The card of a pair: both molecules, their difference, which part carries it, and how near a swap comes."""

from collections.abc import Mapping, Sequence
from typing import Any

from isotrace.report.card.layout import BAR, MARGIN, WIDTH, Row, bars, card, foot, head, legend, placed, sentence
from isotrace.report.card.words import fitted, heading, legible, shortened, word
from isotrace.report.figures import COLOURS, GREY
from isotrace.report.page import number, percent, signed

_RIGHT, _PICTURE, _GAP = 716, 306, 18
_HALF = WIDTH - MARGIN - _RIGHT


def pair_card(summary: Mapping[str, Any], drawings: Sequence[str], scale: float) -> str:
    """SVG of the card. `summary`: what `isotrace trace --against --json` prints, NaN as null; `scale`: the effect at
    full colour of the `drawings`."""
    target, circuit, unit, spelled = (
        summary["target"], summary["circuit"], summary["target"]["unit"], summary["spellings"],
    )  # fmt: skip
    name = summary["name"] if summary["name"] and legible(summary["name"]) else "Why do these two differ?"
    told = said(summary)
    values = (target["value"], target["against"])
    sd = "" if spelled is None else f" ± {number(spelled['difference_sd'])}"
    over = "as written" if spelled is None else "± SD over spellings of both"
    parts = [head(name, "", target["description"]), sentence(told)]
    for i, (svg, text, value) in enumerate(zip(drawings, (summary["input"], summary["against"]), values, strict=True)):
        x = MARGIN + i * (_PICTURE + _GAP)
        parts += [
            placed(svg, x, 228, _PICTURE, 216),
            heading(x, 466, f"{number(value)} {unit}", _PICTURE, (22, 20, 18)),
            word(x, 488, shortened(text, 15, _PICTURE), 15, GREY),
        ]
    element = summary["alignment"]["element"]
    own = f"What its own features, not the other's, do on each {element}, measured one token at a time."
    whole = 2 * _PICTURE + _GAP
    parts += [
        legend(scale, unit, MARGIN, 508, whole),
        fitted(own, whole, 44, (16, 14)).svg(MARGIN, 532, GREY),
        heading(_RIGHT, 264, f"{signed(target['difference'])}{sd} {unit}", _HALF, (36, 32, 28, 24, 20)),
        word(_RIGHT, 294, shortened(f"first − second, {over}", 18, _HALF), 18, GREY),
        heading(_RIGHT, 336, f"Distance to the second's value, {unit}", _HALF, (18, 16, 14)),
        bars(_rows(circuit), _RIGHT, 348, _HALF, 24),
        fitted(_carried(circuit), _HALF, 78, (16, 14)).svg(_RIGHT, 496, GREY),
        foot((summary["subject"], summary["dictionary"], target["name"])),
    ]
    return card(f"{name}: {told}", parts)


def said(summary: Mapping[str, Any]) -> str:
    """The sentence: by how much they differ and which part carries it, or that other spellings differ as much."""
    target, spelled, unit = summary["target"], summary["spellings"], summary["target"]["unit"]
    apart = abs(target["difference"])
    if spelled is not None and spelled["difference_sd"] >= apart:
        return (
            f"Other spellings of the two move their difference by {number(spelled['difference_sd'])} {unit} (SD), as "
            f"much as it is itself ({number(apart)}): what follows explains these two texts, not the two molecules."
        )
    element, way = summary["alignment"]["element"], "higher" if target["difference"] > 0 else "lower"
    found = [f"The first is {number(apart)} {unit} {way}."]
    for side, which in (("input", "first"), ("against", "second")):
        changed, common = summary["lanes"][side][:2]
        if changed["n_nodes"] and changed["moved"] is not None:
            part = "" if changed["share"] is None else f", {percent(changed['share'])} of the difference"
            found.append(
                f"On the changed {element}s of the {which} its own features make it {signed(changed['moved'])}{part} "
                f"(matched nodes elsewhere {signed(changed['control_mean'])}), on the common ones "
                f"{signed(common['moved'])}."
            )
    return " ".join(found)


def _rows(circuit: Mapping[str, Any]) -> list[Row]:
    control, neurons = circuit["control"], circuit["neurons"]
    low, high = control["error_range"]
    ends = None if low is None or high is None else (low, high)
    alike = neurons["chosen"] or {"n": None, "error": None}
    rows = [
        Row(f"{number(circuit['n_features'])} nodes swapped", circuit["error"], BAR),
        Row(f"{control['n']} random swaps", control["error_mean"], ends=ends),
        Row("as many neurons", neurons["error"], COLOURS[7]),
        Row(f"{number(alike['n'])} neurons", alike["error"], COLOURS[7]),
        Row(f"all {number(circuit['every']['n'])} nodes", circuit["every"]["error"]),
        Row("nothing swapped", circuit["nothing"]["error"]),
    ]
    return [row for row in rows if row.value is not None]


def _carried(circuit: Mapping[str, Any]) -> str:
    left = f"leaves {number(circuit['error'])} of {number(circuit['nothing']['error'])}"
    if circuit["carries"]:
        return f"The swap {left}, nearer than nothing and than 95 % of matched random swaps."
    return f"No small swap carries the difference: {circuit['reason']}. The one shown {left}."
