"""What trace and pair cards share: their size, the frame around them, drawings, legends and the bars of the proof."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from isotrace.report.card.words import FONT, fitted, heading, length, printable, shortened, word
from isotrace.report.figures import GREY, INK
from isotrace.report.page import colour, number

WIDTH, HEIGHT, MARGIN = 1200, 630, 48
INNER = WIDTH - 2 * MARGIN
LINE, BAR, CHANCE = "#dfe4ea", "#e8832a", "#a9b4bf"
_BAR, _LABEL, _STEPS = 14, 178, 40
_HIT = re.compile(r'<circle class="hit" data-element="\d+" cx="([^"]*)" cy="([^"]*)" r="([^"]*)"[^>]*/>')
_OVER = re.compile(r'<\w+ class="hit"[^>]*/>')
_BOX = re.compile(r'viewBox="0 0 ([^ "]*) ([^ "]*)"')
LARGEST = 1.5
"""How far a drawing is enlarged at most: a molecule of three atoms fills no card."""


@dataclass(frozen=True)
class Row:
    """A distance in the proof. `ends`: the interval of what chance does; `value` None where it is not known."""

    name: str
    value: float | None
    colour: str = CHANCE
    ends: tuple[float, float] | None = None


def card(title: str, parts: Sequence[str]) -> str:
    """The SVG of a card."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" font-family="{FONT}"><title>{escape(printable(title))}</title>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/><rect width="{WIDTH}" height="8" fill="{BAR}"/>'
        f"{''.join(parts)}</svg>\n"
    )


def head(title: str, under: str, target: str) -> str:
    """What it is about on the left, the target on the right."""
    told = fitted(target, 0.42 * INNER, 58, (24, 21, 18))
    room = INNER - max(length(line, told.size) for line in told.lines) - 32
    rows = "".join(
        word(WIDTH - MARGIN, 62 + 1.28 * told.size * i, line, told.size, GREY, anchor="end")
        for i, line in enumerate(told.lines)
    )
    parts = [heading(MARGIN, 64, title, room, (38, 34, 30, 26, 22)), rows]
    return "".join(parts) + (word(MARGIN, 94, shortened(under, 18, room), 18, GREY) if under else "")


def sentence(text: str) -> str:
    """The finding, across the card."""
    return fitted(text, INNER, 106, (25, 23, 21, 19, 17, 15)).svg(MARGIN, 112, INK)


def foot(said: Sequence[str]) -> str:
    """What was asked, without the folders of the machine that it was asked on."""
    known = " · ".join(public(text) for text in said)
    return word(MARGIN, HEIGHT - 22, shortened(known, 16, INNER - 120), 16, GREY) + word(
        WIDTH - MARGIN, HEIGHT - 22, "isotrace", 18, GREY, bold=True, anchor="end"
    )


def public(source: str) -> str:
    """A subject, dictionary or target by its name, of one that is a folder the last part of it."""
    kind, colon, place = source.partition(":")
    if kind in ("bundled", "hf", "pypi"):
        return source
    folder = re.split(r"[\\/]", (place if len(kind) > 1 and colon else source).rstrip("\\/"))[-1]
    return f"{kind}:{folder}" if len(kind) > 1 and colon else folder


def placed(svg: str, x: float, y: float, width: float, height: float) -> str:
    """A drawing of isotrace in the middle of a box, without its empty margins and without what is there to hover."""
    left, top, wide, high = _extent(svg)
    scale = min(LARGEST, width / wide, height / high)
    x, y = x + (width - scale * wide) / 2, y + (height - scale * high) / 2
    own = f'x="{x:.1f}" y="{y:.1f}" width="{scale * wide:.1f}" height="{scale * high:.1f}"'
    box = f'viewBox="{left:.1f} {top:.1f} {wide:.1f} {high:.1f}"'
    return re.sub(r"<svg [^>]*>", f"<svg {own} {box}>", _OVER.sub("", svg), count=1)


def legend(end: float, unit: str, x: float, y: float, width: float) -> str:
    """The colours of a drawing, from −`end` to `end`, across the middle of `width`; its top at `y`."""
    said = [number(-end), f"{number(end)} {unit}"]
    bar, gap = 180, 10
    room = width - bar - 2 * gap - length(said[0], 16)
    said[1] = shortened(said[1], 16, room)
    start = x + (width - bar - 2 * gap - sum(length(text, 16) for text in said)) / 2
    left = start + length(said[0], 16) + gap
    step, parts = bar / _STEPS, [word(start, y + 13, said[0], 16, GREY)]
    for i in range(_STEPS):
        shade = colour((i + 0.5) / _STEPS * 2 - 1, 1.0, diverging=True)
        parts.append(f'<rect x="{left + i * step:.1f}" y="{y}" width="{step + 0.5:.1f}" height="14" fill="{shade}"/>')
    return "".join(parts) + word(left + bar + gap, y + 13, said[1], 16, GREY)


def bars(rows: Sequence[Row], x: float, y: float, width: float, row: float) -> str:
    """Distances as bars from a common zero, their numbers beside them; the top of the first row at `y`."""
    told = [f"{number(r.value)} {_interval(r.ends)}".strip() for r in rows]
    room = width - _LABEL - max(length(text, 16) for text in told) - 12
    most = max((v for r in rows for v in (r.value, *(r.ends or ())) if v is not None), default=0.0)
    across = lambda v: x + _LABEL + room * (v / most if most else 0.0)  # noqa: E731
    parts = []
    for i, (r, text) in enumerate(zip(rows, told, strict=True)):
        middle = y + row * (i + 0.5)
        name = shortened(r.name, 17, _LABEL - 8)
        parts.append(word(x, middle + 6, name, 17, INK))
        if r.value is not None:
            wide = max(1.5, across(r.value) - across(0))
            parts.append(
                f'<rect x="{across(0):.1f}" y="{middle - _BAR / 2:.1f}" width="{wide:.1f}" height="{_BAR}" '
                f'fill="{r.colour}"/>'
            )
        if r.ends is not None:
            a, b = across(r.ends[0]), across(r.ends[1])
            d = f"M{a:.1f} {middle:.1f}H{b:.1f}"
            d += "".join(f"M{end:.1f} {middle - 5:.1f}V{middle + 5:.1f}" for end in (a, b))
            parts.append(f'<path d="{d}" fill="none" stroke="{INK}" stroke-width="2"/>')
        end = max([across(v) for v in (r.value, *(r.ends or ())) if v is not None], default=across(0))
        parts.append(word(end + 10, middle + 6, text, 16, INK))
    parts.append(
        f'<path d="M{across(0):.1f} {y}V{y + row * len(rows):.1f}" fill="none" stroke="{GREY}" stroke-width="1"/>'
    )
    return "".join(parts)


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"[{number(ends[0])}, {number(ends[1])}]"


def _extent(svg: str) -> tuple[float, float, float, float]:
    """(left, top, width, height) of what is drawn: of a molecule the atoms, with room for their letters."""
    width, height = (float(v) for v in _BOX.findall(svg)[0])
    atoms = [tuple(map(float, found)) for found in _HIT.findall(svg)]
    if not atoms:
        return 0.0, 0.0, width, height
    left, right = min(x - 1.6 * r for x, _, r in atoms), max(x + 1.6 * r for x, _, r in atoms)
    top, bottom = min(y - 1.1 * r for _, y, r in atoms), max(y + 1.1 * r for _, y, r in atoms)
    left, top = max(0.0, left), max(0.0, top)
    return left, top, min(width, right) - left, min(height, bottom) - top
