"""Dose and response: the mean effect of an edit at every dose with its interval, random directions at the largest."""

from collections.abc import Mapping, Sequence
from typing import Any

from isotrace.report.figures import COLOURS, GREY, dot, path, picture, reach, scale, text, ticks
from isotrace.report.page import interval, number

WIDTH, HEIGHT, LEFT, TOP = 520, 240, 60, 20


def response(doses: Sequence[Mapping[str, Any]], twins: Sequence[float], of: str) -> str:
    """SVG. `doses`: rows of the table, those without an effect left out; `twins`: effects of random directions."""
    known = [row for row in doses if row["effect"] is not None and row["effect"] == row["effect"]]
    values = [v for row in known for v in (row["effect"], *row["ci"]) if v is not None]
    low, high = reach([0.0, *values, *twins])
    across = scale(0, max((row["dose"] for row in known), default=1.0) or 1.0, LEFT, LEFT + WIDTH)
    down = scale(low, high, TOP + HEIGHT, TOP)
    parts = [path([(LEFT, TOP), (LEFT, TOP + HEIGHT), (LEFT + WIDTH, TOP + HEIGHT)], GREY)]
    parts.append(path([(LEFT, down(0)), (LEFT + WIDTH, down(0))], GREY, 'stroke-dasharray="3 4"'))
    parts += [text(LEFT - 6, down(v) + 4, number(v), "end", size=12) for v in ticks(low, high, 5)]
    largest = max((row["dose"] for row in known), default=0.0)
    parts += [dot(across(largest) - 9, down(v), GREY, f"random direction: {number(v)}", 2.5) for v in twins]
    parts.append(path([(across(row["dose"]), down(row["effect"])) for row in known], COLOURS[0], 'stroke-width="2"'))
    for row in known:
        x, bounds = across(row["dose"]), [v for v in row["ci"] if v is not None and v == v]
        if len(bounds) == 2:
            parts.append(path([(x, down(bounds[0])), (x, down(bounds[1]))], COLOURS[0], 'stroke-width="1.5"'))
        said = f"{number(row['dose'])} nats: {number(row['effect'])} {interval(row['ci'])}"
        parts.append(dot(x, down(row["effect"]), COLOURS[0], said, 4))
        parts.append(text(x, TOP + HEIGHT + 18, number(row["dose"]), "middle", size=12))
    parts.append(text(LEFT + WIDTH / 2, TOP + HEIGHT + 38, "dose, nats a token", "middle", size=13))
    parts.append(
        text(LEFT, TOP - 6, f"change of {of} from unsteered designs; grey: random directions", "start", size=13)
    )
    return picture(LEFT + WIDTH + 30, TOP + HEIGHT + 48, "dose and response", parts)
