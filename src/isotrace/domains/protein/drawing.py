"""A protein as a coloured track: letters in rows of 50, numbered every ten, with named bands under them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

from isotrace.base.errors import InputError
from isotrace.domains.domain import Track
from isotrace.domains.molecule.drawing import INK, colour

ROW = 50
_CELL, _LETTER, _HEAD, _BAND, _TRACK, _NAMES = 12, 17, 14, 15, 13, 60
_SOFT = "#5b6875"
_SHADES = ("#cfe3f5", "#d6ecd2", "#e9d9f0", "#f6e3b8", "#d9dee3", "#c9ebe7", "#f3d3dc", "#e3dcc7")
"""Of the labels of a track, in their order; they come round again."""


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
    tracks: Sequence[Track] = (),
) -> str:
    """SVG of `sequence`, one weight per residue behind its letter, ≥ 0 unless `diverging`, full colour at `scale`
    (None: the largest). The residues `outlined` have a frame; with `hits` every one has `<rect class="hit"
    data-element="i">` on top, to hover. `first`: how many residues of
    the chain stand before. `tracks` stand below, with their names on the left.

    Raises InputError as `colour` does, and for another number of weights than residues.
    """
    if len(weights) != len(sequence):
        raise InputError(f"{len(weights)} weights for {len(sequence)} residues: give one per residue.")
    end = max(map(abs, weights), default=0.0) if scale is None else scale
    low = _HEAD + _LETTER + (_BAND if bands else 4)
    row_height = low + _TRACK * len(tracks) + (4 if tracks else 0)
    n_rows = -(-len(sequence) // ROW)
    left = _NAMES if tracks else 0
    width = left + min(len(sequence), ROW) * _CELL + 34
    parts, over = [], []
    for start in range(0, len(sequence), ROW):
        last, top = min(start + ROW, len(sequence)), start // ROW * row_height
        base = top + _HEAD
        for i in range(start, last):
            x = left + (i - start) * _CELL
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
                parts.append(_band(band, left + (a - start) * _CELL, (b - a) * _CELL, base + _LETTER))
        for i, track in enumerate(tracks):
            parts.append(_labels(track, start, last, top + low + _TRACK * i))
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


def _labels(track: Track, start: int, last: int, y: int) -> str:
    """The track from residue `start` to before `last`: a box per stretch, its label inside where there is room."""
    shades = {label: _SHADES[i % len(_SHADES)] for i, label in enumerate(sorted({one for one, _ in track.spans}))}
    name = track.name if len(track.name) <= 10 else f"{track.name[:9]}…"
    parts = [f'<text font-size="9" fill="{_SOFT}" text-anchor="end" x="{_NAMES - 4}" y="{y + 9}">{escape(name)}</text>']
    for label, elements in track.spans:
        shown = [e for e in elements if start <= e < last]
        if not shown:
            continue
        x, width = _NAMES + (shown[0] - start) * _CELL, (shown[-1] - shown[0] + 1) * _CELL
        told = escape(f"{track.name}: {label}, residues {elements[0] + 1}–{elements[-1] + 1}")
        parts.append(
            f'<rect class="tracked" x="{x}" y="{y}" width="{width - 1}" height="{_TRACK - 2}" fill="{shades[label]}">'
            f"<title>{told}</title></rect>"
        )
        if 6 * len(label) <= width:
            parts.append(f'<text font-size="9" x="{x + width / 2:g}" y="{y + 9}">{escape(label)}</text>')
    return "".join(parts)
