"""Dose and response: the mean effect of an edit at every dose with its interval, beside random directions of each."""

from collections.abc import Mapping, Sequence
from typing import Any

from isotrace.report.figures import COLOURS, GREY, dot, path, picture, reach, scale, text, ticks
from isotrace.report.page import interval, number

WIDTH, HEIGHT, LEFT, TOP = 400, 220, 60, 20
ASIDE, SHADE = 10, "#f1f3f5"
LETTERS = 40
"""Of a name above the figure, which has room for no more."""


def response(doses: Sequence[Mapping[str, Any]], twins: Sequence[Mapping[str, Any]], of: str) -> str:
    """SVG. `doses`: rows of the table, those without an effect left out, those that are not `safe` in grey; they stand
    equally far apart, since most are small. `twins`: `effects` of a `null` at a `dose`."""
    known = [row for row in doses if row["effect"] is not None and row["effect"] == row["effect"]]
    values = [v for row in known for v in (row["effect"], *row["ci"]) if v is not None]
    low, high = reach([0.0, *values, *(v for row in twins for v in row["effects"])])
    step = WIDTH / max(len(known), 1)
    across = {row["dose"]: LEFT + step * (i + 0.5) for i, row in enumerate(known)}
    down = scale(low, high, TOP + HEIGHT, TOP)
    unsafe, parts = [row for row in known if not row["safe"]], []
    if unsafe:
        left = across[unsafe[0]["dose"]] - step / 2
        size = f'width="{LEFT + WIDTH - left:.1f}" height="{HEIGHT}"'
        parts.append(f'<rect x="{left:.1f}" y="{TOP}" {size} fill="{SHADE}"/>')
        parts.append(text(left + 4, TOP + HEIGHT - 6, "not safe", "start", GREY, 12))
    parts.append(path([(LEFT, TOP), (LEFT, TOP + HEIGHT), (LEFT + WIDTH, TOP + HEIGHT)], GREY))
    parts.append(path([(LEFT, down(0)), (LEFT + WIDTH, down(0))], GREY, 'stroke-dasharray="3 4"'))
    parts += [text(LEFT - 6, down(v) + 4, number(v), "end", size=12) for v in ticks(low, high, 5)]
    aside = {null: ASIDE * i for i, null in enumerate(dict.fromkeys(row["null"] for row in twins), 1)}
    parts += [
        dot(across[row["dose"]] - aside[row["null"]], down(v), GREY, f"{row['null']}: {number(v)}", 2.5)
        for row in twins if row["dose"] in across for v in row["effects"]
    ]  # fmt: skip
    for colour, rows in ((COLOURS[0], [row for row in known if row["safe"]]), (GREY, unsafe)):
        parts.append(path([(across[row["dose"]], down(row["effect"])) for row in rows], colour, 'stroke-width="2"'))
        for row in rows:
            parts += _marked(row, across[row["dose"]], down, colour)
    parts.append(text(LEFT + WIDTH / 2, TOP + HEIGHT + 38, "dose, nats a token", "middle", size=13))
    short = of if len(of) <= LETTERS else f"{of[:LETTERS]}…"
    parts.append(text(LEFT, TOP - 6, f"change of {short}", "start", size=13))
    if aside:
        dots = f"grey dots, from the right: {', '.join(aside)}"
        parts.append(text(LEFT + WIDTH / 2, TOP + HEIGHT + 56, dots, "middle", GREY, 12))
    return picture(LEFT + WIDTH + 30, TOP + HEIGHT + (66 if aside else 48), "dose and response", parts)


def _marked(row: Mapping[str, Any], x: float, down: Any, colour: str) -> list[str]:
    bounds, parts = [v for v in row["ci"] if v is not None and v == v], []
    if len(bounds) == 2:
        parts.append(path([(x, down(bounds[0])), (x, down(bounds[1]))], colour, 'stroke-width="1.5"'))
    said = f"{number(row['dose'])} nats: {number(row['effect'])} {interval(row['ci'])}"
    return [*parts, dot(x, down(row["effect"]), colour, said, 4),
            text(x, TOP + HEIGHT + 18, number(row["dose"]), "middle", size=12)]  # fmt: skip
