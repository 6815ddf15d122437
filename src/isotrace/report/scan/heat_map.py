"""Maps of positions × residues: predicted above, measured below, designs framed."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import polars as pl

from isotrace.report.figures import GREY, INK, picture, text
from isotrace.report.page import colour, number

ROWS = "AVILMCFYWSTNQGPDEKRH"
"""Residues of the map, like beside like."""
_CELL, _SIDE, _HEAD, _PER_ROW, _LEVELS, _ABSENT = 14, 22, 46, 60, 16, "#eef1f4"
_NAMED = 5  # designs of a cell that are named
_FULL = 0.98
"""Quantile of the distance from the median that has full colour."""


def heat_maps(frame: pl.DataFrame, designs: pl.DataFrame, worse: str) -> list[str]:
    """SVG of every stretch of sites. `frame`: a row per site and residue, as `site_map` has them; `designs`: as
    `designs_frame`."""
    if frame.is_empty():
        return []
    sign = 1 if worse == "low" else -1
    frame = frame.with_columns(better=sign * pl.col("measured"))
    sites = frame["site"].unique().sort().to_list()
    drawn = {name: _shades(frame, name) for name in ("predicted", "better")}
    cells = {(row["site"], row["residue"]): row | {"designs": []} for row in frame.to_dicts()}
    for name, told in designs.select("name", "mutation").rows():
        for one in told.split(":"):  # positions of the file may begin below 1
            cells[int(one[1:-1]), one[-1]]["designs"].append(name or told)
    parts = [sites[i : i + _PER_ROW] for i in range(0, len(sites), _PER_ROW)]
    return [heat_map(part, cells, drawn) for part in parts]


def _shades(frame: pl.DataFrame, name: str) -> dict[tuple[int, str], str]:
    """Colour of every cell that has a value: blue for worse than the median of the map, orange for better."""
    known = frame.filter(pl.col(name).is_finite())
    if known.is_empty():
        return {}
    centred = known[name].to_numpy() - known[name].median()
    end = float(np.quantile(np.abs(centred), _FULL)) or 1.0
    shares = np.round(np.clip(centred / end, -1, 1) * _LEVELS) / _LEVELS
    found = (colour(share, 1.0, diverging=True) for share in shares.tolist())
    return {
        (site, residue): shade for (site, residue), shade in zip(known["site", "residue"].rows(), found, strict=True)
    }


def heat_map(
    sites: Sequence[int],
    cells: Mapping[tuple[int, str], Mapping[str, Any]],
    shades: Mapping[str, Mapping[tuple[int, str], str]],
) -> str:
    """Cells of one colour are one path, so that a page of a long chain stays small; every column tells its numbers."""
    height = len(ROWS) * _CELL
    tops = {name: _HEAD + i * (height + _HEAD) for i, name in enumerate(shades)}
    named = {"predicted": "predicted", "better": "measured"}
    parts = []
    for name, top in tops.items():
        parts.append(text(_SIDE, top - 31, named[name], "start", GREY, 12))
        by_colour: dict[str, list[str]] = {}
        for i, site in enumerate(sites):
            for j, residue in enumerate(ROWS):
                shade = shades[name].get((site, residue), _ABSENT)
                by_colour.setdefault(shade, []).append(f"M{_SIDE + i * _CELL} {top + j * _CELL}h13v13h-13z")
                x, y = _SIDE + i * _CELL, top + j * _CELL
                if cells[site, residue]["wild_type"] == residue:
                    parts.append(f'<circle cx="{x + 6.5}" cy="{y + 6.5}" r="2" fill="{INK}"/>')
                if cells[site, residue]["designs"]:
                    frame = f'x="{x + 0.5}" y="{y + 0.5}" width="12" height="12"'
                    parts.append(f'<rect class="design" {frame} fill="none" stroke="{INK}" stroke-width="1.6"/>')
            wild = cells[site, ROWS[0]]["wild_type"]
            parts.append(text(_SIDE + i * _CELL + 6.5, top - 4, wild, "middle", INK, 11))
            if site % 5 == 0 or not i:
                parts.append(text(_SIDE + i * _CELL + 6.5, top - 16, str(site), "middle", GREY, 9))
        parts[:0] = [f'<path d="{"".join(d)}" fill="{shade}"/>' for shade, d in by_colour.items()]
        parts += [text(_SIDE - 10, top + j * _CELL + 11, r, "middle", INK, 11) for j, r in enumerate(ROWS)]
    bottom = max(tops.values()) + height
    for i, site in enumerate(sites):
        said = [_said(cells[site, residue]) for residue in ROWS if cells[site, residue]["wild_type"] != residue]
        parts.append(
            f'<rect x="{_SIDE + i * _CELL}" y="{_HEAD}" width="13" height="{bottom - _HEAD}" fill="none" '
            f'pointer-events="all"><title>{escape(chr(10).join(said))}</title></rect>'
        )
    width = _SIDE + max(len(sites), 12) * _CELL + 4
    return picture(width, bottom + 6, "positions × residues", parts, "map", fixed=True)


def _said(cell: Mapping[str, Any]) -> str:
    known = {name: cell[name] for name in ("predicted", "measured") if cell[name] is not None}
    values = ", ".join(f"{name} {number(value)}" for name, value in known.items())
    designs = f"; in {', '.join(cell['designs'][:_NAMED])}" if cell["designs"] else ""
    more = f" and {len(cell['designs']) - _NAMED} more" if len(cell["designs"]) > _NAMED else ""
    return f"{cell['wild_type']}{cell['site']}{cell['residue']}: {values or 'no value'}{designs}{more}"
