"""Where in the model: what the circuit's features do by layer and token, drawn."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from isotrace.report.figures import GREY, picture, text
from isotrace.report.page import colour, number

CELL, ROW, LEFT, WIDEST = 14, 20, 70, 1_160
"""Pixels: width of a token, height of a layer, room for the layers' names, and all there is to be."""


def grid(features: Sequence[Mapping[str, Any]], tokens: Sequence[Mapping[str, Any]], n_layers: int, unit: str) -> str:
    """SVG: a row per layer, the first at the bottom, a column per token; orange where the circuit's features there push
    the target up, blue where down: their effects, each ablated alone, summed. `features` as `Record.features` has
    them, `tokens` as the page has them."""
    sums: dict[tuple[int, int], float] = {}
    for one in features:
        place = one["layer"], one["position"]
        sums[place] = sums.get(place, 0.0) + one["effect"]
    scale = max(map(abs, sums.values()), default=0.0)
    n = len(tokens)
    cell = min(CELL, (WIDEST - LEFT) / max(1, n))
    bottom, width = 10 + ROW * n_layers, LEFT + cell * n + 10
    parts = [text(LEFT - 8, bottom - ROW * layer - 5, f"layer {layer}", "end", GREY, 12) for layer in range(n_layers)]
    for (layer, position), value in sums.items():
        x, y = LEFT + cell * position, bottom - ROW * (layer + 1)
        told = f"layer {layer}, {tokens[position]['text']} at {position}: {number(value)} {unit}"
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{cell:.1f}" height="{ROW - 1}" '
            f'fill="{colour(value, scale, diverging=True)}"><title>{escape(told)}</title></rect>'
        )
    parts.append(f'<path d="M{LEFT} {bottom}H{LEFT + cell * n:.1f}" stroke="{GREY}" fill="none"/>')
    for token in tokens:
        x = LEFT + cell * (token["pos"] + 0.5)
        if len(token["text"]) <= 2 and cell > 8:
            parts.append(text(x, bottom + 14, token["text"], "middle", size=11))
        if token["pos"] % 10 == 0:
            parts.append(text(x, bottom + 29, str(token["pos"]), "middle", GREY, 11))
    title = f"Effects of the circuit's features by layer and token, full colour {number(scale)} {unit}"
    return picture(round(width), bottom + 36, title, parts, "places", fixed=True)
