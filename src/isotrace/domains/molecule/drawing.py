"""Molecule drawings as SVG, atoms coloured by weight, and the colour scale shared with token strips.

Atom `i` is the i-th atom written in the SMILES, which holds as long as explicit hydrogens are kept when parsing.
Two hues that remain apart under red-green colour blindness: white to orange for magnitudes, blue through white
to orange for signed values. Colour is linear in the weight.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from html import escape
from statistics import median

from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D
from rdkit.Geometry import Point2D

from isotrace.base.errors import InputError

INK = "#1d2733"
ORANGE = (232, 131, 42)
BLUE = (74, 143, 211)
_DATA = re.compile(r"d='([^']*)'")
# What the group around the drawing states once, so that no path needs to repeat it.
_INHERITED = {
    "fill:none",
    "fill-rule:evenodd",
    "stroke:#000000",
    "stroke-linecap:butt",
    "stroke-linejoin:miter",
    "stroke-miterlimit:10",
    "stroke-opacity:1",
    "fill-opacity:1",
    "font-style:normal",
    "font-weight:normal",
    "font-family:sans-serif",
    "text-anchor:start",
}


def colour(weight: float, scale: float, *, diverging: bool) -> str:
    """`#rrggbb` of `weight`: white at 0, orange at `scale`, and blue at −`scale` when `diverging`.

    `scale` is the largest magnitude on the scale; at 0 everything is white. Raises InputError for a value that
    is not finite, lies beyond the scale, or is negative on the sequential scale.
    """
    if not (math.isfinite(weight) and math.isfinite(scale)):
        raise InputError(f"weight {weight} on scale {scale} has no colour: leave out atoms without a finite weight.")
    if abs(weight) > scale:
        raise InputError(f"weight {weight:g} lies beyond the colour scale {scale:g}: pass a larger scale.")
    if weight < 0 and not diverging:
        raise InputError(f"weight {weight:g} is negative: use the diverging scale for signed weights.")
    share = abs(weight) / scale if scale else 0.0
    return "#" + "".join(f"{round(255 + (end - 255) * share):02x}" for end in (BLUE if weight < 0 else ORANGE))


def draw_molecule(
    mol: Chem.Mol,
    weights: Mapping[int, float],
    *,
    size: tuple[int, int],
    bond_weights: Mapping[int, float] | None = None,
    diverging: bool,
    scale: float | None = None,
    marks: Sequence[tuple[str, float, float]] = (),
    outlined: Collection[int] = (),
    links: Sequence[tuple[int, int]] = (),
) -> str:
    """SVG of `mol` with a coloured disc behind every weighted atom and a band behind every weighted bond.

    `weights` maps atom index to weight, `bond_weights` bond index to weight; both share one scale, whose end is
    `scale`, or the largest magnitude among them where that is None. `size` is width and height in pixels. The
    background is transparent. `marks` are (text, x, y) in the coordinates of `mol`'s conformer, which is drawn as
    it is where there is one. The atoms `outlined` have a dashed ring; `links` are arcs between two atoms, orange or
    blue as the first weighs, and as thick as it does. Discs are `<circle class="heat" data-element="i">`; on top of
    every atom lies an invisible `<circle class="hit" data-element="i">` to hover. The SVG carries no id, so several
    can share a page.
    Raises InputError for an index the molecule lacks and for weights that have no colour (see `colour`).
    """
    bonds = bond_weights or {}
    end = max((abs(w) for w in (*weights.values(), *bonds.values())), default=0.0) if scale is None else scale
    return _draw(mol, weights, bonds, size, end, diverging, small=False, marks=marks, outlined=outlined, links=links)


def draw_small(
    mol: Chem.Mol,
    weights: Mapping[int, float],
    *,
    size: tuple[int, int] = (170, 120),
    diverging: bool = False,
    scale: float | None = None,
    marks: Sequence[tuple[str, float, float]] = (),
) -> str:
    """Compact SVG of `mol` for feature cards, nothing to hover; the rest as in `draw_molecule`, which see."""
    end = max((abs(w) for w in weights.values()), default=0.0) if scale is None else scale
    return _draw(mol, weights, {}, size, end, diverging, small=True, marks=marks)


def _draw(
    mol: Chem.Mol,
    weights: Mapping[int, float],
    bonds: Mapping[int, float],
    size: tuple[int, int],
    scale: float,
    diverging: bool,
    *,
    small: bool,
    marks: Sequence[tuple[str, float, float]] = (),
    outlined: Collection[int] = (),
    links: Sequence[tuple[int, int]] = (),
) -> str:
    for kind, items, count in (("atom", weights, mol.GetNumAtoms()), ("bond", bonds, mol.GetNumBonds())):
        if unknown := [i for i in items if not 0 <= i < count]:
            raise InputError(f"{kind} {unknown[0]} does not exist: the molecule has {count} {kind}s, counted from 0.")
    width, height = size
    # Labels are text in small drawings: a glyph outline takes some 500 bytes.
    drawer = rdMolDraw2D.MolDraw2DSVG(width, height, -1, -1, small)
    options = drawer.drawOptions()
    options.clearBackground = False
    options.useBWAtomPalette()
    options.fixedBondLength = 24 if small else 44
    options.bondLineWidth = 1.2 if small else 2
    options.scaleBondWidth = False
    options.padding = 0.06 if small else 0.09
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, mol)
    drawer.FinishDrawing()
    points = [(p.x, p.y) for p in map(drawer.GetDrawCoords, range(mol.GetNumAtoms()))]
    ends = [(points[b.GetBeginAtomIdx()], points[b.GetEndAtomIdx()]) for b in mol.GetBonds()]
    length = median([math.dist(a, b) for a, b in ends]) if ends else float(options.fixedBondLength)

    heat = [
        f'<path class="heat" data-bond="{i}" stroke="{colour(w, scale, diverging=diverging)}" '
        f'stroke-width="{0.36 * length:.1f}" d="M{_at(ends[i][0])}L{_at(ends[i][1])}"/>'
        for i, w in bonds.items()
        if w
    ]
    heat += [
        f'<circle class="heat" data-element="{i}" {_centre(points[i])} r="{0.42 * length:.1f}" '
        f'fill="{colour(w, scale, diverging=diverging)}"/>'
        for i, w in weights.items()
        if w
    ]
    heat += [
        f'<circle class="outlined" data-element="{i}" {_centre(points[i])} r="{0.46 * length:.1f}" fill="none" '
        f'stroke="{INK}" stroke-dasharray="4 3"/>'
        for i in sorted(outlined)
    ]
    strongest = max((abs(weights.get(a, 0.0)) for a, _ in links), default=0.0)
    heat += [_arc(points[a], points[b], weights.get(a, 0.0), strongest) for a, b in links]
    hits = [
        f'<circle class="hit" data-element="{i}" {_centre(p)} r="{0.46 * length:.1f}" fill="transparent"/>'
        for i, p in enumerate(points)
        if not small
    ]
    signs = [
        f'<text class="mark" {_place(drawer.GetDrawCoords(Point2D(x, y)))} font-size="{0.6 * length:.0f}" '
        f'text-anchor="middle" dominant-baseline="central" fill="{INK}">{escape(text)}</text>'
        for text, x, y in marks
    ]
    body = _compact(drawer.GetDrawingText(), options.bondLineWidth, small)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="molecule" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{"".join(heat)}<g fill="none" stroke="{INK}" '
        f'stroke-width="{options.bondLineWidth:g}" stroke-linejoin="round" fill-rule="evenodd" '
        f'font-family="sans-serif">{body}</g>{"".join(signs)}{"".join(hits)}</svg>'
    )


def _arc(a: tuple[float, float], b: tuple[float, float], weight: float, strongest: float) -> str:
    """Over the drawing, between atoms that lie side by side."""
    middle, lift = (a[0] + b[0]) / 2, min(a[1], b[1]) - 0.12 * math.dist(a, b)
    hue = "#" + "".join(f"{value:02x}" for value in (BLUE if weight < 0 else ORANGE))
    size = 1 + 4 * abs(weight) / strongest if strongest else 1
    return (
        f'<path class="link" fill="none" stroke="{hue}" stroke-opacity="0.55" stroke-width="{size:.1f}" '
        f'stroke-linecap="round" d="M{_at(a)}Q{middle:.1f} {max(2.0, lift):.1f} {_at(b)}"/>'
    )


def _compact(text: str, line_width: float, small: bool) -> str:
    """The elements RDKit drew, without prolog and root, and without declarations that the group states."""
    body = text[text.index("<!-- END OF HEADER -->") + 22 : text.rindex("</svg>")]
    inherited = _INHERITED | {f"stroke-width:{line_width:.1f}px"}

    @cache  # a drawing has few styles
    def shortened(style: str) -> str:
        kept = [d for d in style.split(";") if d and d not in inherited]
        return f" style='{';'.join(kept)}'" if kept else ""

    body = re.sub(r" style='([^']*)'", lambda match: shortened(match[1]), body)
    body = body.replace("fill='#000000'", "stroke='none' fill='#000000'").replace("#000000", INK)
    if small:
        body = re.sub(r" class='[^']*'", "", body)
    body = re.sub(r"\.0(?=[ ,'])", "", body)
    body = (
        re.sub(r"\s+", " ", body)
        .replace(", ", ",")
        .replace(" />", "/>")
        .replace("' >", "'>")
        .replace("> <", "><")
        .strip()
    )
    if small:
        body = re.sub(r"(?:<path d='[^']*'/>)+", lambda m: f"<path d='{''.join(_DATA.findall(m[0]))}'/>", body)
    return body


def _at(point: tuple[float, float]) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}"


def _centre(point: tuple[float, float]) -> str:
    return f'cx="{point[0]:.1f}" cy="{point[1]:.1f}"'


def _place(point: Point2D) -> str:
    return f'x="{point.x:.1f}" y="{point.y:.1f}"'
