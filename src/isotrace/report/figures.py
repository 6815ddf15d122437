"""What pictures are made of: scales, round ticks, lines, marks and text as SVG, legible from 400 pixels of width on."""

import math
from collections.abc import Callable, Sequence
from html import escape

INK, GREY, GRID = "#1d2733", "#6b7683", "#e6eaee"
COLOURS = ("#1f609f", "#b3560a", "#1b7837", "#762a83", "#b2182b", "#01665e", "#a16207", "#475569")
Point = tuple[float, float]
Scale = Callable[[float], float]


def picture(
    width: float, height: float, title: str, parts: Sequence[str], kind: str = "figure", *, fixed: bool = False
) -> str:
    """`fixed`: shown in its own size, and not as wide as the page is."""
    size = f'width="{width}" height="{height}" ' if fixed else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}viewBox="0 0 {width} {height}" role="img" class="{kind}" '
        f'font-family="system-ui, Helvetica, Arial, sans-serif" font-size="14" fill="{INK}">'
        f'<title>{escape(title)}</title><rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def scale(low: float, high: float, start: float, end: float, turn: Callable[[float], float] = float) -> Scale:
    """From values between low and high to places between start and end; `turn` is math.log for a logarithmic axis."""
    span = max(turn(high) - turn(low), 1e-9)
    return lambda value: start + (turn(value) - turn(low)) / span * (end - start)


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round values between low and high, at most that many."""
    steps = (m * 10.0**p for p in range(-9, 13) for m in (1, 2, 2.5, 5))
    step = next(s for s in steps if math.floor(high / s) - math.ceil(low / s) < most)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [m * 10.0**p for p in powers for m in ((1, 2, 5) if high < 200 * low else (1,))]
    return [value for value in values if low <= value <= high]


def reach(values: Sequence[float]) -> Point:
    """Least and largest finite value, with a margin."""
    finite = [v for v in values if math.isfinite(v)]
    low, high = min(finite), max(finite)
    margin = 0.04 * (high - low or 1.0)
    return low - margin, high + margin


def path(points: Sequence[Point], colour: str, style: str = "") -> str:
    if not points:
        return ""
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="{d}" fill="none" stroke="{colour}" {style}/>'


def band(outline: Sequence[Point], fill: str, within: tuple[float, float, float, float]) -> str:
    if not outline:
        return ""
    left, top, right, bottom = within
    d = "M" + "L".join(f"{x - left:.1f} {y - top:.1f}" for x, y in outline) + "Z"
    # An inner svg cuts what leaves it without an id, so that several pictures can share a page.
    return (
        f'<svg x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" overflow="hidden">'
        f'<path d="{d}" fill="{fill}" fill-opacity=".6"/></svg>'
    )


def dot(x: float, y: float, colour: str, title: str, r: float = 3) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" fill="{colour}"><title>{escape(title)}</title></circle>'


def bar(x: float, y: float, width: float, height: float) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="#9cc3e6"/>'


def text(x: float, y: float, words: str, anchor: str, colour: str = INK, size: int = 14) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(words)}'
        "</text>"
    )
