"""Training curves as one SVG: loss, FVE, L0 and dead share over tokens, one line per dictionary."""

from collections.abc import Sequence
from typing import Any

from isotrace.report.figures import COLOURS, GREY, path, picture, scale, text

PANELS = ("loss", "FVE", "L0", "dead features, %")
WIDTH, HEIGHT, POINTS = 300, 150, 200


def training_curves(records: Sequence[dict[str, Any]]) -> str:
    """SVG of the reconstruction phase of every job in `records` (see `training.callbacks`); at most 200 points a line,
    each the mean of the steps it stands for."""
    jobs: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["phase"] == "reconstruct":
            jobs.setdefault(record["job"], []).append(record)
    lines = {name: _thinned([_values(r) for r in rows]) for name, rows in jobs.items()}
    top = 30 + 18 * -(-len(lines) // 3)
    parts = []
    for number, title in enumerate(PANELS):
        points = {name: [(row[0], row[number + 1]) for row in rows] for name, rows in lines.items()}
        x, y = 60 + (number % 2) * (WIDTH + 80), top + (number // 2) * (HEIGHT + 62)
        parts.append(f'<g transform="translate({x} {y})">{_panel(title, points)}</g>')
    for i, name in enumerate(lines):
        x, y = 60 + (i % 3) * 220, 18 + 18 * (i // 3)
        parts.append(path([(x, y - 4), (x + 22, y - 4)], COLOURS[i % len(COLOURS)], 'stroke-width="3"'))
        parts.append(text(x + 28, y, name, "start", size=12))
    return picture(2 * WIDTH + 160, top + 2 * (HEIGHT + 62), "training", parts)


def _values(record: dict[str, Any]) -> tuple[float, ...]:
    fve = sum(record["fve"]) / len(record["fve"])
    return record["tokens"], record["loss"], fve, record["l0"], 100 * record["dead"]


def _thinned(rows: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    step = -(-len(rows) // POINTS)
    groups = [rows[i : i + step] for i in range(0, len(rows), step)]
    return [tuple(sum(column) / len(group) for column in zip(*group, strict=True)) for group in groups]


def _panel(title: str, lines: dict[str, list[tuple[float, float]]]) -> str:
    """Axes and polylines. The first steps of a loss tower over the rest: beyond its 98th percentile the line runs
    along the upper edge."""
    values = sorted(y for points in lines.values() for _, y in points)
    last = max(x for points in lines.values() for x, _ in points)
    low, high = values[0], values[int(0.98 * (len(values) - 1))] if title == "loss" else values[-1]
    across, down = scale(0, last, 0, WIDTH), scale(low, high, HEIGHT, 0)
    parts = [path([(0, 0), (0, HEIGHT), (WIDTH, HEIGHT)], GREY)]
    for number, points in enumerate(lines.values()):
        places = [(across(x), down(min(high, y))) for x, y in points]
        parts.append(path(places, COLOURS[number % len(COLOURS)], 'stroke-width="1.5"'))
    parts.append(f'<g font-weight="bold">{text(0, -8, title, "start", size=12)}</g>')
    for y, value in ((10, high), (HEIGHT, low)):
        parts.append(text(-6, y, f"{value:.3g}", "end", size=12))
    parts.append(text(WIDTH, HEIGHT + 16, f"{last:,.0f} tokens", "end", size=12))
    return "".join(parts)
