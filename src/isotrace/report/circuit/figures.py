"""The pictures of a task circuit as SVG text: the faithfulness curve, layers against expectation, what removal costs.

All are 480 wide and legible from 380 pixels on. Points carry their numbers as titles, so no script is needed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from isotrace.discovery.tasks.summary import CURVES
from isotrace.report.page import percent

WIDTH, HEIGHT = 480, 390
LEFT, RIGHT, TOP, BOTTOM = 56, 440, 58, 338
START = LEFT + 44  # where the log axis begins; left of it stands the circuit without any feature
INK, GREY, GRID, BAND = "#1d2733", "#6b7683", "#e6eaee", "#dfe4ea"
ORANGE, BLUE = "#b3560a", "#1f609f"
LEVELS = (0.79, 0.9)
Point = tuple[float, float]

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
    low, high = _reach([*(get(e) for e in sweep for get in CURVES.values()), empty["sufficiency"], 0.0, 1.0])
    ends = [end for e in (*(e["free_running"] for e in sweep), empty) for end in e["ci"]]
    low, high = _reach([low, high, *(min(max(end, 2 * low - high), 2 * high - low) for end in ends)])
    first = min(e["n"] for e in sweep)
    span = max(math.log(n_all / first), 1e-9)
    across = lambda n: START + 8 + math.log(n / first) / span * (RIGHT - START - 16)  # noqa: E731
    down = lambda v: BOTTOM - (v - low) / (high - low) * (BOTTOM - TOP)  # noqa: E731
    parts = [*_shares(low, high, down), *_sizes(first, n_all, across)]
    for level, shift in zip(LEVELS, (7, 1), strict=True):  # apart even where the axis is long
        parts.append(_path([(LEFT, down(level)), (RIGHT, down(level))], INK, 'stroke-dasharray="2 3"'))
        parts.append(_text(RIGHT + 6, down(level) + shift, percent(level), "start", size=12))
    for key, fill in (("random", BAND), ("free_running", "#bcd6ee")):
        ends = [(across(e["n"]), *e[key]["ci"]) for e in sweep if np.isfinite(e[key]["ci"]).all()]
        outline = [(x, down(b)) for x, _, b in ends] + [(x, down(a)) for x, a, _ in reversed(ends)]
        parts.append(_band(outline, fill, within=(LEFT, TOP, RIGHT, BOTTOM)))
    for curve, (name, colour, dash) in LINES.items():
        value = CURVES[curve]
        at = [(e, across(e["n"]), down(value(e))) for e in sweep if math.isfinite(value(e))]
        style = f'stroke-dasharray="{dash}"' if dash else 'stroke-width="2"'
        parts.append(_path([(x, y) for _, x, y in at], colour, style))
        parts += [_dot(x, y, colour, f"{e['n']} · {name.format(noun)}: {percent(value(e))}") for e, x, y in at]
    if math.isfinite(empty["sufficiency"]):
        at = down(empty["sufficiency"])
        parts.append(_path([(LEFT + 22, at), (RIGHT, at)], BLUE, 'stroke-dasharray="1 4"'))
        parts.append(_whisker(LEFT + 22, [down(min(max(v, low), high)) for v in empty["ci"]], BLUE))
        parts.append(_dot(LEFT + 22, at, BLUE, f"∅, no {noun} at all: {percent(empty['sufficiency'])}", r=4.5))
    for i, (name, colour, dash) in enumerate(reversed(LINES.values())):
        x, y = 8 + i % 2 * 240, 20 + i // 2 * 20
        parts.append(_path([(x, y - 4), (x + 26, y - 4)], colour, f'stroke-dasharray="{dash}" stroke-width="2.5"'))
        parts.append(_text(x + 32, y, name.format(noun), "start", size=13))
    parts.append(_text((START + RIGHT) / 2, HEIGHT - 6, f"{noun} kept, the rest at their mean", "middle"))
    return _svg(HEIGHT, f"share of the task metric above chance kept, against {noun} kept", parts)


def layers_svg(rows: Sequence[Mapping[str, Any]]) -> str:
    """A bar per layer; the line across it spans the 95 % interval of a random choice, its tick the expected number.
    `rows`: layer, n, expected, interval."""
    end = max(1.0, *(max(row["n"], row["interval"][1]) for row in rows))
    parts, left = [], 74
    across = lambda v: left + v / end * (WIDTH - left - 60)  # noqa: E731
    for i, row in enumerate(rows):
        y = 8 + 24 * i
        parts.append(_text(left - 8, y + 13, f"layer {row['layer']}", "end"))
        parts.append(_bar(left, y + 2, across(row["n"]) - left, 14))
        low, high = (across(v) for v in row["interval"])
        parts.append(_path([(low, y + 9), (high, y + 9)], INK, 'stroke-width="1.2"'))
        parts.append(_path([(across(row["expected"]), y), (across(row["expected"]), y + 18)], INK, 'stroke-width="2"'))
        parts.append(_text(max(across(row["n"]), high) + 8, y + 14, f"{row['n']:,}", "start"))
    return _svg(16 + 24 * len(rows), "parts of the circuit per layer", parts)


def falls_svg(rows: Sequence[tuple[str, float, Sequence[float]]]) -> str:
    """A bar per (name, share of the metric above chance that is lost, 95 % interval)."""
    rows = with_nan(rows)
    low, high = _reach([0.0, *(v for _, value, ci in rows for v in (value, *ci))])
    left = 176
    across = lambda v: left + (v - low) / (high - low) * (WIDTH - left - 12)  # noqa: E731
    parts = [_path([(across(0), 4), (across(0), 8 + 44 * len(rows))], GREY, "")]
    for i, (name, value, ci) in enumerate(rows):
        y = 12 + 44 * i
        parts.append(_text(left - 12, y + 12, name, "end"))
        shown = [percent(v if math.isfinite(v) else None) for v in (value, *ci)]
        parts.append(_text(left - 12, y + 28, "{} [{}, {}]".format(*shown), "end", GREY, 12))
        if not math.isfinite(value):
            continue
        parts.append(_bar(min(across(0), across(value)), y + 4, abs(across(value) - across(0)), 20))
        if np.isfinite(ci).all():
            a, b = (across(v) for v in ci)
            parts.append(_path([(a, y + 14), (b, y + 14)], INK, 'stroke-width="1.5"'))
            parts += [_path([(x, y + 9), (x, y + 19)], INK, 'stroke-width="1.5"') for x in (a, b)]
    return _svg(20 + 44 * len(rows), "share of the metric above chance lost by removal", parts)


def _reach(values: Sequence[float]) -> Point:
    """Least and largest finite value, with a margin."""
    finite = [v for v in values if math.isfinite(v)]
    low, high = min(finite), max(finite)
    margin = 0.04 * (high - low or 1.0)
    return low - margin, high + margin


def _shares(low: float, high: float, down: Callable[[float], float]) -> list[str]:
    """Grid of the vertical axis."""
    step = next(s for p in range(-3, 12) for s in (10.0**p, 2 * 10.0**p, 5 * 10.0**p) if (high - low) / s <= 7)
    values = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    lines = [_path([(LEFT, down(v)), (RIGHT, down(v))], GREY if v == 0 else GRID, "") for v in values]
    return lines + [
        _text(LEFT - 6, down(v) + 5, f"{round(100 * v):,} %".replace("-", "−"), "end", size=12) for v in values
    ]


def _sizes(first: int, n_all: int, across: Callable[[float], float]) -> list[str]:
    """Horizontal axis: ∅, a break, powers of ten, all."""
    powers = [10**k for k in range(math.ceil(math.log10(first)), math.floor(math.log10(n_all)) + 1)]
    marks = [(across(n), f"{n:,}") for n in powers if across(n_all) - across(n) > 34] + [(across(n_all), "all")]
    parts = [
        _path([(LEFT, BOTTOM), (START - 12, BOTTOM)], INK, ""),
        _path([(START - 8, BOTTOM), (RIGHT, BOTTOM)], INK, ""),
        *(_path([(x, BOTTOM + 5), (x, BOTTOM - 5)], INK, "") for x in (START - 12, START - 8)),
        _path([(across(n_all), TOP), (across(n_all), BOTTOM)], GRID, ""),
        _text(LEFT + 22, BOTTOM + 20, "∅", "middle"),
    ]
    for x, text in marks:
        parts += [_path([(x, BOTTOM), (x, BOTTOM + 5)], INK, ""), _text(x, BOTTOM + 20, text, "middle", size=12)]
    return parts


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" class="figure" '
        f'font-family="system-ui, Helvetica, Arial, sans-serif" font-size="14" fill="{INK}">'
        f'<title>{escape(title)}</title><rect width="{WIDTH}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _path(points: Sequence[Point], colour: str, style: str) -> str:
    if not points:
        return ""
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="{d}" fill="none" stroke="{colour}" {style}/>'


def _band(outline: Sequence[Point], fill: str, within: tuple[float, float, float, float]) -> str:
    if not outline:
        return ""
    left, top, right, bottom = within
    d = "M" + "L".join(f"{x - left:.1f} {y - top:.1f}" for x, y in outline) + "Z"
    # An inner svg cuts what leaves it without an id, so that several pictures can share a page.
    return (
        f'<svg x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" overflow="hidden">'
        f'<path d="{d}" fill="{fill}" fill-opacity=".6"/></svg>'
    )


def _dot(x: float, y: float, colour: str, title: str, r: float = 3) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{colour}"><title>{escape(title)}</title></circle>'


def _bar(x: float, y: float, width: float, height: float) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="#9cc3e6"/>'


def _whisker(x: float, ends: Sequence[float], colour: str) -> str:
    return _path([(x, ends[0]), (x, ends[1])], colour, 'stroke-width="1.5"') if np.isfinite(ends).all() else ""


def _text(x: float, y: float, text: str, anchor: str, colour: str = INK, size: int = 14) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(text)}</text>'
    )
