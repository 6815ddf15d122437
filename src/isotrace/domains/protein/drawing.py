"""A protein as a coloured track: letters in rows of 50, numbered every ten, with named bands under them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

from isotrace.base.errors import InputError
from isotrace.domains.molecule.drawing import INK, colour

ROW = 50
_CELL, _LETTER, _HEAD, _BAND = 12, 17, 14, 15
_SOFT = "#5b6875"


@dataclass(frozen=True)
class Band:
    """A named part of a chain: residues `start` to before `end`, from 0. `group` says which bands look alike."""

    name: str
    start: int
    end: int
    group: str


def draw_track(
    sequence: str,
    weights: Sequence[float],
    bands: Sequence[Band],
    scale: float | None,
    *,
    diverging: bool = False,
    outlined: Collection[int] = (),
    hits: bool = False,
    first: int = 0,
) -> str:
    """SVG of `sequence`, one weight per residue behind its letter, ≥ 0 unless `diverging`, full colour at `scale`
    (None: the largest). The residues `outlined` have a frame; with `hits` every one has `<rect class="hit"
    data-element="i">` on top, to hover. `first`: how many residues of
    the chain stand before.

    Raises InputError as `colour` does, and for another number of weights than residues.
    """
    if len(weights) != len(sequence):
        raise InputError(f"{len(weights)} weights for {len(sequence)} residues: give one per residue.")
    end = max(map(abs, weights), default=0.0) if scale is None else scale
    row_height = _HEAD + _LETTER + (_BAND if bands else 4)
    n_rows = -(-len(sequence) // ROW)
    width = min(len(sequence), ROW) * _CELL + 34
    parts, over = [], []
    for start in range(0, len(sequence), ROW):
        last, top = min(start + ROW, len(sequence)), start // ROW * row_height
        base = top + _HEAD
        for i in range(start, last):
            x = (i - start) * _CELL
            if weights[i]:
                fill = colour(weights[i], end, diverging=diverging)
                parts.append(
                    f'<rect class="heat" data-element="{i}" x="{x}" y="{base}" width="{_CELL}" height="{_LETTER}" '
                    f'fill="{fill}"/>'
                )
            else:
                colour(weights[i], end, diverging=diverging)  # NaN is no zero
            if i in outlined:
                parts.append(
                    f'<rect class="outlined" x="{x + 0.5}" y="{base + 0.5}" width="{_CELL - 1}" height="{_LETTER - 1}" '
                    f'fill="none" stroke="{INK}"/>'
                )
            parts.append(f'<text x="{x + _CELL / 2:g}" y="{base + 13}">{sequence[i]}</text>')
            if hits:
                over.append(
                    f'<rect class="hit" data-element="{i}" x="{x}" y="{base}" width="{_CELL}" height="{_LETTER}" '
                    'fill="transparent"/>'
                )
            if (i + first + 1) % 10 == 0:
                parts.append(f'<text class="number" x="{x + _CELL / 2:g}" y="{top + 10}">{i + first + 1}</text>')
        for band in bands:
            a, b = max(band.start, start), min(band.end, last)
            if a < b:
                parts.append(_band(band, (a - start) * _CELL, (b - a) * _CELL, base + _LETTER))
    style = f'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13" text-anchor="middle" fill="{INK}"'
    body = "".join(parts).replace('class="number"', f'class="number" font-size="9" fill="{_SOFT}"')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="track" width="{width}" height="{n_rows * row_height}" '
        f'viewBox="0 0 {width} {n_rows * row_height}"><g {style}>{body}</g>{"".join(over)}</svg>'
    )


def _band(band: Band, x: int, width: int, y: int) -> str:
    # A name wider than its part of the band would run into the next.
    name = band.name if 6 * len(band.name) <= width else ""
    line, ink, thick = ("#c5ccd4", _SOFT, 1.5) if band.group == "framework" else (INK, INK, 2.5)
    return (
        f'<path stroke="{line}" stroke-width="{thick}" d="M{x + 1} {y + 2.5}H{x + width - 1}"/>'
        f'<text font-size="9" fill="{ink}" x="{x + width / 2:g}" y="{y + 12}">{escape(name)}</text>'
    )
