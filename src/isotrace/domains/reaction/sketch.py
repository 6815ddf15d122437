"""A reaction laid out in one row: reactants, an arrow with the reagents above it, products."""

from rdkit import Chem
from rdkit.Chem import rdDepictor

from isotrace.domains.molecule.sketch import BOND_LENGTH, Sketch
from isotrace.domains.reaction.tokens import Reaction

_GAP = 1.4 * BOND_LENGTH  # on either side of a sign, with room for the labels of the outermost atoms
_ARROW = 2 * BOND_LENGTH
_LIFT = BOND_LENGTH / 2  # from the arrow to the lowest reagent


def reaction_sketch(reaction: Reaction) -> Sketch:
    """Components of a side are joined by plus signs; each is centred on the row of its side."""
    mol = Chem.Mol(reaction.mol)
    rdDepictor.Compute2DCoords(mol)
    row = _Row(mol)
    row.side([part for part, s in zip(reaction.components, reaction.sides, strict=True) if s == "reactant"])
    start = row.x + _GAP
    reagents = [part for part, s in zip(reaction.components, reaction.sides, strict=True) if s == "reagent"]
    row.x = start
    row.side(reagents, lift=True)
    end = max(row.x, start + _ARROW)
    row.marks.append(("⟶", (start + end) / 2, 0.0))
    row.x = end + _GAP
    row.side([part for part, s in zip(reaction.components, reaction.sides, strict=True) if s == "product"])
    return Sketch(mol, tuple(row.marks))


class _Row:
    """Moves components, one after the other, to where the row ends, `x`."""

    def __init__(self, mol: Chem.Mol):
        self.conformer = mol.GetConformer()
        self.x = 0.0
        self.marks: list[tuple[str, float, float]] = []

    def side(self, parts: list[tuple[int, ...]], *, lift: bool = False) -> None:
        """`lift`: above the arrow instead of level with it."""
        points = [[self.conformer.GetAtomPosition(atom) for atom in part] for part in parts]
        half = [(max(p.y for p in found) - min(p.y for p in found)) / 2 for found in points]
        level = max(half, default=0.0) + _LIFT if lift else 0.0
        for number, (part, found, height) in enumerate(zip(parts, points, half, strict=True)):
            if number:
                self.marks.append(("+", self.x + _GAP, level))
                self.x += 2 * _GAP
            right, up = self.x - min(p.x for p in found), level - min(p.y for p in found) - height
            for atom, point in zip(part, found, strict=True):
                point.x += right
                point.y += up
                self.conformer.SetAtomPosition(atom, point)
            self.x = max(p.x for p in found)
