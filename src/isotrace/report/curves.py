"""Training curves as one SVG: loss, FVE, L0 and dead share over tokens, one line per dictionary."""

from collections.abc import Sequence
from html import escape
from typing import Any

PANELS = ("loss", "FVE", "L0", "dead features, %")
COLOURS = ("#0b6e99", "#c2410c", "#4d7c0f", "#7e22ce", "#b91c1c", "#0f766e", "#a16207", "#475569")
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
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f'<path d="M{x} {y - 4}h22" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 28}" y="{y}">{escape(name)}</text>')
    width, height = 2 * WIDTH + 160, top + 2 * (HEIGHT + 62)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" fill="#1f2933"><rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


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
    span = (high - low) or 1.0
    parts = [f'<path d="M0 0V{HEIGHT}H{WIDTH}" fill="none" stroke="#9aa5b1"/>']
    for number, points in enumerate(lines.values()):
        places = [(WIDTH * x / last, HEIGHT * (1 - min(1.0, (y - low) / span))) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    parts.append(f'<text x="0" y="-8" font-weight="bold">{title}</text>')
    for y, text in ((10, f"{high:.3g}"), (HEIGHT, f"{low:.3g}")):
        parts.append(f'<text x="-6" y="{y}" text-anchor="end">{text}</text>')
    parts.append(f'<text x="{WIDTH}" y="{HEIGHT + 16}" text-anchor="end">{last:,.0f} tokens</text>')
    return "".join(parts)
