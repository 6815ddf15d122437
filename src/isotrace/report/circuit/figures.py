"""The pictures of a task circuit as SVG text: the faithfulness curve, layers against expectation, what removal costs.

All are 480 wide and legible from 380 pixels on. Points carry their numbers as titles, so no script is needed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isotrace.discovery.tasks.summary import CURVES
from isotrace.report.figures import (
    COLOURS,
    GREY,
    GRID,
    INK,
    Scale,
    band,
    bar,
    dot,
    path,
    picture,
    reach,
    scale,
    text,
    ticks,
)
from isotrace.report.page import percent

WIDTH, HEIGHT = 480, 390
LEFT, RIGHT, TOP, BOTTOM = 56, 440, 58, 338
START = LEFT + 44  # where the log axis begins; left of it stands the circuit without any feature
BAND = "#dfe4ea"
BLUE, ORANGE = COLOURS[:2]
LEVELS = (0.79, 0.9)

NOUNS = {"feature": "features", "neuron": "neurons", "head": "heads", "attention": "attention layers",
         "mlp": "MLPs"}  # fmt: skip
LINES = {
    "neurons": ("best neurons", ORANGE, ""),
    "random": ("matched random ones", GREY, ""),
    "teacher_forced": ("the same, teacher-forced", BLUE, "5 4"),
    "features": ("{}, free-running", BLUE, ""),
}
"""Curve of the summary → (name with a place for the noun, colour, dashes), in the order of drawing."""


def with_nan(value: Any) -> Any:
    """Copy of nested containers with NaN for None, the null of a summary that was saved."""
    if isinstance(value, Mapping):
        return {key: with_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value


def curve_svg(summary: Mapping[str, Any]) -> str:
    """Share of the task metric above chance kept by circuits of rising size, ∅ at the left end of a log axis and all
    parts at the right. What is not finite is left out. The vertical axis holds every line; for the intervals of the
    circuit and ∅ it reaches at most as far again to either side. Bands are cut at the edge: tables have the ends."""
    summary = with_nan(summary)
    sweep, n_all, empty = summary["sweep"], summary["n_features"], summary["empty"]
    noun = NOUNS[summary["mediator"]]
    low, high = reach([*(get(e) for e in sweep for get in CURVES.values()), empty["sufficiency"], 0.0, 1.0])
    ends = [end for e in (*(e["free_running"] for e in sweep), empty) for end in e["ci"]]
    low, high = reach([low, high, *(min(max(end, 2 * low - high), 2 * high - low) for end in ends)])
    first = min(e["n"] for e in sweep)
    across = scale(first, n_all, START + 8, RIGHT - 8, math.log)
    down = scale(low, high, BOTTOM, TOP)
    parts = [*_shares(low, high, down), *_sizes(first, n_all, across)]
    for level, shift in zip(LEVELS, (7, 1), strict=True):  # apart even where the axis is long
        parts.append(path([(LEFT, down(level)), (RIGHT, down(level))], INK, 'stroke-dasharray="2 3"'))
        parts.append(text(RIGHT + 6, down(level) + shift, percent(level), "start", size=12))
    for key, fill in (("random", BAND), ("free_running", "#bcd6ee")):
        ends = [(across(e["n"]), *e[key]["ci"]) for e in sweep if np.isfinite(e[key]["ci"]).all()]
        outline = [(x, down(b)) for x, _, b in ends] + [(x, down(a)) for x, a, _ in reversed(ends)]
        parts.append(band(outline, fill, within=(LEFT, TOP, RIGHT, BOTTOM)))
    for curve, (name, colour, dash) in LINES.items():
        value = CURVES[curve]
        at = [(e, across(e["n"]), down(value(e))) for e in sweep if math.isfinite(value(e))]
        style = f'stroke-dasharray="{dash}"' if dash else 'stroke-width="2"'
        parts.append(path([(x, y) for _, x, y in at], colour, style))
        parts += [dot(x, y, colour, f"{e['n']} · {name.format(noun)}: {percent(value(e))}") for e, x, y in at]
    if math.isfinite(empty["sufficiency"]):
        at = down(empty["sufficiency"])
        parts.append(path([(LEFT + 22, at), (RIGHT, at)], BLUE, 'stroke-dasharray="1 4"'))
        if np.isfinite(empty["ci"]).all():
            ends = [(LEFT + 22, down(min(max(v, low), high))) for v in empty["ci"]]
            parts.append(path(ends, BLUE, 'stroke-width="1.5"'))
        parts.append(dot(LEFT + 22, at, BLUE, f"∅, no {noun} at all: {percent(empty['sufficiency'])}", r=4.5))
    for i, (name, colour, dash) in enumerate(reversed(LINES.values())):
        x, y = 8 + i % 2 * 240, 20 + i // 2 * 20
        parts.append(path([(x, y - 4), (x + 26, y - 4)], colour, f'stroke-dasharray="{dash}" stroke-width="2.5"'))
        parts.append(text(x + 32, y, name.format(noun), "start", size=13))
    parts.append(text((START + RIGHT) / 2, HEIGHT - 6, f"{noun} kept, the rest at their mean", "middle"))
    return picture(WIDTH, HEIGHT, f"share of the task metric above chance kept, against {noun} kept", parts)


def layers_svg(rows: Sequence[Mapping[str, Any]]) -> str:
    """A bar per layer; the line across it spans the 95 % interval of a random choice, its tick the expected number.
    `rows`: layer, n, expected, interval."""
    end = max(1.0, *(max(row["n"], row["interval"][1]) for row in rows))
    parts, left = [], 74
    across = scale(0, end, left, WIDTH - 60)
    for i, row in enumerate(rows):
        y = 8 + 24 * i
        parts.append(text(left - 8, y + 13, f"layer {row['layer']}", "end"))
        parts.append(bar(left, y + 2, across(row["n"]) - left, 14))
        low, high = (across(v) for v in row["interval"])
        parts.append(path([(low, y + 9), (high, y + 9)], INK, 'stroke-width="1.2"'))
        parts.append(path([(across(row["expected"]), y), (across(row["expected"]), y + 18)], INK, 'stroke-width="2"'))
        parts.append(text(max(across(row["n"]), high) + 8, y + 14, f"{row['n']:,}", "start"))
    return picture(WIDTH, 16 + 24 * len(rows), "parts of the circuit per layer", parts)


def falls_svg(rows: Sequence[tuple[str, float, Sequence[float]]]) -> str:
    """A bar per (name, share of the metric above chance that is lost, 95 % interval)."""
    rows = with_nan(rows)
    low, high = reach([0.0, *(v for _, value, ci in rows for v in (value, *ci))])
    left = 176
    across = scale(low, high, left, WIDTH - 12)
    parts = [path([(across(0), 4), (across(0), 8 + 44 * len(rows))], GREY, "")]
    for i, (name, value, ci) in enumerate(rows):
        y = 12 + 44 * i
        parts.append(text(left - 12, y + 12, name, "end"))
        shown = [percent(v if math.isfinite(v) else None) for v in (value, *ci)]
        parts.append(text(left - 12, y + 28, "{} [{}, {}]".format(*shown), "end", GREY, 12))
        if not math.isfinite(value):
            continue
        parts.append(bar(min(across(0), across(value)), y + 4, abs(across(value) - across(0)), 20))
        if np.isfinite(ci).all():
            a, b = (across(v) for v in ci)
            parts.append(path([(a, y + 14), (b, y + 14)], INK, 'stroke-width="1.5"'))
            parts += [path([(x, y + 9), (x, y + 19)], INK, 'stroke-width="1.5"') for x in (a, b)]
    return picture(WIDTH, 20 + 44 * len(rows), "share of the metric above chance lost by removal", parts)


def _shares(low: float, high: float, down: Scale) -> list[str]:
    """Grid of the vertical axis."""
    values = ticks(low, high)
    lines = [path([(LEFT, down(v)), (RIGHT, down(v))], GREY if v == 0 else GRID, "") for v in values]
    return lines + [
        text(LEFT - 6, down(v) + 5, f"{round(100 * v):,} %".replace("-", "−"), "end", size=12) for v in values
    ]


def _sizes(first: int, n_all: int, across: Scale) -> list[str]:
    """Horizontal axis: ∅, a break, powers of ten, all."""
    powers = [10**k for k in range(math.ceil(math.log10(first)), math.floor(math.log10(n_all)) + 1)]
    marks = [(across(n), f"{n:,}") for n in powers if across(n_all) - across(n) > 34] + [(across(n_all), "all")]
    parts = [
        path([(LEFT, BOTTOM), (START - 12, BOTTOM)], INK, ""),
        path([(START - 8, BOTTOM), (RIGHT, BOTTOM)], INK, ""),
        *(path([(x, BOTTOM + 5), (x, BOTTOM - 5)], INK, "") for x in (START - 12, START - 8)),
        path([(across(n_all), TOP), (across(n_all), BOTTOM)], GRID, ""),
        text(LEFT + 22, BOTTOM + 20, "∅", "middle"),
    ]
    for x, words in marks:
        parts += [path([(x, BOTTOM), (x, BOTTOM + 5)], INK, ""), text(x, BOTTOM + 20, words, "middle", size=12)]
    return parts
