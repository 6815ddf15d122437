"""Lines and dots over one axis, each with the interval of its values, as one SVG with a legend."""

import math
from collections.abc import Mapping
from typing import Any

from isotrace.report.figures import (
    COLOURS,
    GREY,
    GRID,
    band,
    dot,
    path,
    picture,
    reach,
    scale,
    text,
    ticks,
)
from isotrace.report.page import number

WIDTH, HEIGHT, LEFT, TOP, ROW = 400, 230, 64, 34, 18
THICK = 'stroke-width="2"'


def lines_svg(plot: Mapping[str, Any]) -> str:
    """`plot`: `studies.study.Plot` as a dict. Values that are no number are left out."""
    lines = [_finite(line) for line in plot["lines"]]
    values = [v for line in lines for row in line["rows"] for v in row[1:]]
    places = [row[0] for line in lines for row in line["rows"]]
    right, bottom = LEFT + WIDTH, TOP + HEIGHT
    parts = [f'<g font-weight="bold">{text(LEFT, TOP - 14, plot["title"], "start")}</g>']
    if values:
        (first, last), (low, high) = reach(places), reach(values)
        across, down = scale(first, last, LEFT, right), scale(low, high, bottom, TOP)
        for value in ticks(low, high, 6):
            parts.append(path([(LEFT, down(value)), (right, down(value))], GRID))
            parts.append(text(LEFT - 6, down(value) + 4, number(value), "end", size=12))
        parts += [text(across(v), bottom + 16, number(v), "middle", size=12) for v in ticks(first, last, 7)]
        for i, line in enumerate(lines):
            parts += _drawn(line, COLOURS[i % len(COLOURS)], across, down, (LEFT, TOP, right, bottom))
    else:
        parts.append(text(LEFT + WIDTH / 2, TOP + HEIGHT / 2, "no value is a number", "middle", GREY))
    parts.append(path([(LEFT, TOP), (LEFT, bottom), (right, bottom)], GREY))
    parts.append(text(LEFT + WIDTH / 2, bottom + 36, plot["x"], "middle", size=13))
    label = text(0, 0, plot["y"], "middle", size=13)
    parts.append(f'<g transform="translate(14 {TOP + HEIGHT / 2}) rotate(-90)">{label}</g>')
    for i, line in enumerate(lines):
        y, colour = bottom + 58 + ROW * i, COLOURS[i % len(COLOURS)]
        stroke = path([(LEFT, y - 4), (LEFT + 22, y - 4)], colour, THICK)
        mark = dot(LEFT + 11, y - 4, colour, line["name"]) if line["dots"] else stroke
        parts += [mark, text(LEFT + 30, y, line["name"], "start", size=12)]
    return picture(right + 24, bottom + 50 + ROW * max(1, len(lines)), plot["title"], parts)


def _finite(line: Mapping[str, Any]) -> dict[str, Any]:
    """`rows`: (x, y, low, high), low and high equal to y where there is no interval."""
    y = line["y"]
    rows = zip(line["x"], y, line["low"] or y, line["high"] or y, strict=True)
    known = [row for row in rows if all(v is not None and math.isfinite(v) for v in row)]
    return {"name": line["name"], "dots": line["dots"], "rows": known, "spread": line["low"] is not None}


def _drawn(line, colour, across, down, within) -> list[str]:
    rows, parts = line["rows"], []
    points = [(across(x), down(y)) for x, y, *_ in rows]
    if line["dots"]:
        for (x, y, low, high), place in zip(rows, points, strict=True):
            if line["spread"]:
                parts.append(path([(place[0], down(low)), (place[0], down(high))], colour, 'stroke-width="1.2"'))
            parts.append(dot(*place, colour, f"{line['name']}: {number(y)} at {number(x)}"))
        return parts
    if line["spread"]:
        upper = [(across(x), down(high)) for x, _, _, high in rows]
        lower = [(across(x), down(low)) for x, _, low, _ in reversed(rows)]
        parts.append(band(upper + lower, f"{colour}40", within))
    return [*parts, path(points, colour, THICK)]
