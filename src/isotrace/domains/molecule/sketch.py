"""One sequence drawn with its tokens: as SVG, and as data for the report's own script.

A sketch is a molecule with 2-D coordinates (RDKit's: y points up, a bond is 1.5 long) and signs written between its
parts; a molecule has none, a reaction has plus signs and an arrow.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdDepictor
from rdkit.Geometry import Point2D

from isotrace.base.errors import InputError
from isotrace.domains.alignment import Alignment
from isotrace.domains.domain import Reading
from isotrace.domains.molecule.drawing import INK, colour, draw_molecule
from isotrace.domains.molecule.tokens import bond_of

BOND_LENGTH = 1.5
_ORDERS = {Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3, Chem.BondType.QUADRUPLE: 4}
_WEDGES = {Chem.BondDir.BEGINWEDGE: "wedge", Chem.BondDir.BEGINDASH: "dash"}
_UP, _DOWN = str.maketrans("0123456789+-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"), str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_ROW, _LETTER = 18, 6.7  # pixels: height of a row of tokens, width of a letter at font size 11


@dataclass(frozen=True)
class Sketch:
    mol: Chem.Mol
    marks: tuple[tuple[str, float, float], ...]

    def height(self, width: int) -> int:
        """Pixels at which the drawing fills `width`, with room for a bond length around it."""
        sides = np.ptp(self.mol.GetConformer().GetPositions()[:, :2], axis=0) + 2 * BOND_LENGTH
        return round(width * float(np.clip(sides[1] / sides[0], 0.15, 1)))


def sketch(mol: Chem.Mol) -> Sketch:
    placed = Chem.Mol(mol)
    rdDepictor.Compute2DCoords(placed)
    return Sketch(placed, ())


def alike(a: Reading, b: Reading, alignment: Alignment) -> tuple[Sketch, Sketch]:
    """Sketches of two molecules whose common part lies in the same place."""
    first, placed = sketch(a.parsed), Chem.Mol(b.parsed)
    points, where = first.mol.GetConformer(), dict[int, Point2D]()
    for elements, partner in zip(a.elements, alignment.partner, strict=True):
        for atom, other in zip(elements, () if partner is None else b.elements[partner], strict=False):
            if atom not in alignment.changed[0] and other not in alignment.changed[1]:
                point = points.GetAtomPosition(atom)
                where[other] = Point2D(point.x, point.y)
    rdDepictor.Compute2DCoords(placed, coordMap=where)
    return first, Sketch(placed, ())


def draw_signed(
    drawn: Sketch, reading: Reading, weights: Sequence[float], outlined: Collection[int], scale: float
) -> str:
    """SVG of the sketch, atoms coloured by `weights` of either sign, one per token, on one scale."""
    atoms: dict[int, float] = {}
    for elements, weight in zip(reading.elements, weights, strict=True):
        for atom in elements:
            atoms[atom] = atoms.get(atom, 0.0) + weight / len(elements)
    return draw_molecule(drawn.mol, atoms, size=(420, 300), diverging=True, scale=scale, outlined=outlined)


def draw_sketch(
    drawn: Sketch, reading: Reading, weights: Sequence[float], *, size: tuple[int, int], scale: float | None
) -> str:
    """SVG of the sketch above the tokens of `reading`.

    An atom is coloured by the largest weight among the tokens that write it, a bond by that of its bond symbol and
    ring digits. `weights` ≥ 0, one per token; `scale` is the weight at full colour, None takes the largest. Raises
    InputError if there is not one weight per token, and for weights that have no colour.
    """
    if len(weights) != len(reading.units):
        raise InputError(f"{len(weights)} weights for {len(reading.units)} tokens: give one weight per token.")
    end = max(weights, default=0.0) if scale is None else scale
    atoms: dict[int, float] = {}
    bonds: dict[int, float] = {}
    for unit, elements, weight in zip(reading.units, reading.elements, weights, strict=True):
        colour(weight, end, diverging=False)  # tokens that stand for no atom are checked here too
        for atom in elements:
            atoms[atom] = max(atoms.get(atom, 0.0), weight)
        if (bond := bond_of(unit, drawn.mol)) is not None:
            bonds[bond] = max(bonds.get(bond, 0.0), weight)
    picture = draw_molecule(
        drawn.mol, atoms, size=size, bond_weights=bonds, diverging=False, scale=end, marks=drawn.marks
    )
    rows, height = _token_rows(reading, weights, end, *size)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{height}" '
        f'viewBox="0 0 {size[0]} {height}">{picture}{rows}</svg>'
    )


def picture_of(drawn: Sketch, reading: Reading) -> dict[str, Any]:
    """`kind` graph: atoms [symbol, x, y, label], bonds [i, j, order] or [i, j, order, "wedge" | "dash"] with the
    narrow end at i, tokens [text, elements], marks [text, x, y].

    Coordinates in bond lengths, y pointing up; `label` is what to write at the atom, "" where the symbol alone, or
    for a carbon with neighbours nothing, is enough. Aromatic rings are Kekulé's.
    """
    mol = Chem.Mol(drawn.mol)
    Chem.Kekulize(mol)
    Chem.WedgeMolBonds(mol, mol.GetConformer())
    positions = mol.GetConformer().GetPositions()[:, :2] / BOND_LENGTH
    atoms = [
        [_symbol(atom), round(float(x), 2), round(float(y), 2), _label(atom)]
        for atom, (x, y) in zip(mol.GetAtoms(), positions, strict=True)
    ]
    bonds: list[list[Any]] = []
    for bond in mol.GetBonds():
        row: list[Any] = [bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), _ORDERS.get(bond.GetBondType(), 1)]
        if bond.GetBondDir() in _WEDGES:
            row.append(_WEDGES[bond.GetBondDir()])
        bonds.append(row)
    return {
        "kind": "graph",
        "text": reading.text,
        "atoms": atoms,
        "bonds": bonds,
        "tokens": [[unit.text, list(e)] for unit, e in zip(reading.units, reading.elements, strict=True)],
        "marks": [[text, round(x / BOND_LENGTH, 2), round(y / BOND_LENGTH, 2)] for text, x, y in drawn.marks],
    }


def _symbol(atom: Chem.Atom) -> str:
    return str(atom.GetIsotope() or "").translate(_UP) + atom.GetSymbol()


def _label(atom: Chem.Atom) -> str:
    charge, hydrogens = atom.GetFormalCharge(), atom.GetTotalNumHs()
    if atom.GetSymbol() == "C" and atom.GetDegree() and not charge and not atom.GetIsotope():
        return ""
    text = "H" * (hydrogens > 0) + str(hydrogens).translate(_DOWN) * (hydrogens > 1)
    if charge:
        text += (str(abs(charge)) * (abs(charge) > 1) + ("+" if charge > 0 else "-")).translate(_UP)
    return _symbol(atom) + text if text else ""


def _token_rows(reading: Reading, weights: Sequence[float], scale: float, width: int, top: int) -> tuple[str, int]:
    """(SVG of the tokens in rows, height of the whole)."""
    x, y, parts = 2.0, top + 2.0, []
    for unit, weight in zip(reading.units, weights, strict=True):
        wide = _LETTER * len(unit.text) + 3
        if x + wide > width and x > 2:
            x, y = 2.0, y + _ROW
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.0f}" width="{wide - 1:.1f}" height="{_ROW - 3}" '
            f'fill="{colour(weight, scale, diverging=False)}"/>'
            f'<text x="{x + wide / 2 - 0.5:.1f}" y="{y + 11:.0f}">{escape(unit.text)}</text>'
        )
        x += wide
    body = "".join(parts)
    style = f'font-family="monospace" font-size="11" text-anchor="middle" fill="{INK}"'
    return f'<g class="tokens" {style}>{body}</g>', round(y + _ROW)
