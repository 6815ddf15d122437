"""Is a reaction whole? What its sides hold of atoms and charge as written, and what is missing.

Of single-step reactions as chemists and data sets write them few balance, as by-products are left out. What a product
must not hold is a heavy atom that nothing brings: this containment, not balance, tells a sound completion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rdkit import Chem

from isotrace.domains.molecule.spelling import fragments
from isotrace.domains.reaction.balance import CHARGE, FREE, Composition, Redox, balances, composition, total
from isotrace.domains.reaction.mapping import changes, mapping
from isotrace.domains.reaction.tokens import SIDES, Reaction, Side, parse_reaction

Verdict = Literal["balanced", "product contained", "atoms from nowhere"]
BY_PRODUCTS = {
    "H2": "hydrogen", "H2O": "water", "FH": "hydrogen fluoride", "ClH": "hydrogen chloride", "BrH": "hydrogen bromide",
    "HI": "hydrogen iodide",
    "CO2": "carbon dioxide", "CO": "carbon monoxide", "N2": "nitrogen", "H3N": "ammonia", "O2S": "sulfur dioxide",
    "C2H4O2": "acetic acid", "CH4O": "methanol", "C2H6O": "ethanol", "C4H8": "isobutene", "C4H10O": "tert-butanol",
    "C5H8O2": "Boc, as isobutene and carbon dioxide", "C2HF3O2": "trifluoroacetic acid", "C7H8": "toluene",
    "CH4O3S": "methanesulfonic acid", "CHF3O3S": "triflic acid", "C7H8O3S": "toluenesulfonic acid",
    "C7H8O": "benzyl alcohol", "Br-": "bromide", "Cl-": "chloride", "I-": "iodide", "F-": "fluoride",
}  # fmt: skip
"""The usual by-product of a formula; another may have the same."""


@dataclass(frozen=True)
class Completeness:
    """verdict: of the sides as written; of a half-reaction `balanced` where free species balance it. Reagents count
        with the reactants where these alone do not hold the product's heavy atoms (`from_reagents`).
    equation: with the least coefficients that balance reactants and products (and free species), None where none do.
    by_product: formula of what the precursors hold beyond the products, None for nothing; `name` where it is usual.
    nowhere: formula of the heavy atoms that the products hold beyond the precursors, `n_nowhere` how many.
    hydrogens, charge: by how much the products hold more than the precursors; `heavy_conserved`: as many of every other
        element.
    without_origin: product atoms, numbered through the reaction, that the atom maps lead to no precursor atom of the
        same element; None without maps.
    """

    verdict: Verdict
    equation: str | None
    by_product: str | None
    name: str | None
    nowhere: str | None
    n_nowhere: int
    hydrogens: int
    charge: int
    heavy_conserved: bool
    from_reagents: bool
    without_origin: tuple[int, ...] | None


def completeness(text: str, mapped: str | None = None, redox: Redox | None = None) -> Completeness:
    """Of `reactants>reagents>products`. `mapped` is the same reaction with atom maps, which `text` may hold itself.

    redox: it is a half-reaction in acid or base, which electrons, water and H+ or OH- may complete.
    Raises InputError for what is no reaction, for a placeholder atom, and for maps that do not fit.
    """
    reaction = parse_reaction(text)
    parts = species(reaction)
    before, reagents, after = ([found for _, found in parts[side]] for side in SIDES)
    product, source = total(after), total(before)
    from_reagents = bool(reagents) and not contained(source, product)
    if from_reagents:
        source = total([*before, *reagents])
    missing = _heavy(_beyond(product, source))
    names = [name for side in ("reactant", "product") for name, _ in parts[side]]
    free = FREE[redox] if redox else {}
    found = balances(before, after, free=[*free.values()])
    verdict: Verdict = "atoms from nowhere" if missing else "product contained"
    if source == product or (redox and found):
        verdict = "balanced"
    by_product = formula(_beyond(source, product) | {CHARGE: source.get(CHARGE, 0) - product.get(CHARGE, 0)})
    numbered = any(atom.GetAtomMapNum() for atom in reaction.mol.GetAtoms())
    mapped = text if mapped is None and numbered else mapped
    return Completeness(
        verdict,
        _equation(found[0], names, len(before), [*free]) if found else None,
        by_product,
        BY_PRODUCTS.get(by_product or ""),
        formula(missing),
        sum(missing.values()),
        product.get("H", 0) - source.get("H", 0),
        product.get(CHARGE, 0) - source.get(CHARGE, 0),
        _heavy(source) == _heavy(product),
        from_reagents,
        None if mapped is None else _without_origin(reaction, mapped),
    )


def species(reaction: Reaction) -> dict[Side, list[tuple[str, dict[str, int]]]]:
    """(SMILES without atom maps, composition) of the components of every side. Raises InputError for a placeholder."""
    found: dict[Side, list[tuple[str, dict[str, int]]]] = {side: [] for side in SIDES}
    for (part, _), side in zip(fragments(reaction.mol), reaction.sides, strict=True):
        found[side].append((_plain(part), composition(part)))
    return found


def contained(precursors: Composition, products: Composition) -> bool:
    """Whether the precursors hold all heavy atoms of the products."""
    return not _heavy(_beyond(products, precursors))


def formula(found: Composition) -> str | None:
    """In Hill's order: carbon, hydrogen, the rest by the alphabet; without carbon all by the alphabet. The charge
    stands behind, `NO3-`, an isotope in brackets. None for no atoms."""
    names = sorted(name for name, count in found.items() if name != CHARGE and count)
    if not names:
        return None
    if "C" in names:
        names.sort(key=lambda name: (name != "C", name != "H"))
    written = (f"[{name}]" if name[0].isdigit() else name for name in names)
    counted = "".join(f"{name}{found[key] if found[key] > 1 else ''}" for name, key in zip(written, names, strict=True))
    charge = found.get(CHARGE, 0)
    sign = "+" if charge > 0 else "-"
    return counted + ("" if not charge else sign if abs(charge) == 1 else f"({abs(charge)}{sign})")


def _beyond(a: Composition, b: Composition) -> dict[str, int]:
    """What `a` holds of each element beyond `b`."""
    return {name: n - b.get(name, 0) for name, n in a.items() if name != CHARGE and n > b.get(name, 0)}


def _heavy(found: Composition) -> dict[str, int]:
    return {name: n for name, n in found.items() if name.lstrip("0123456789") != "H" and name != CHARGE}


def _equation(coefficients: Sequence[int], names: Sequence[str], n_before: int, free: Sequence[str]) -> str:
    """`2 [H][H] + O=O = 2 O`."""
    written = [*zip(coefficients, [*names, *free], strict=True)]
    fixed, loose = written[: len(names)], written[len(names) :]
    left = [*fixed[:n_before], *((n, name) for n, name in loose if n > 0)]
    right = [*fixed[n_before:], *((-n, name) for n, name in loose if n < 0)]
    return " = ".join(" + ".join(name if n == 1 else f"{n} {name}" for n, name in side) for side in (left, right))


def _without_origin(reaction: Reaction, mapped: str) -> tuple[int, ...]:
    partner = changes(reaction, mapping(reaction, mapped)).partner
    element = [atom.GetAtomicNum() for atom in reaction.mol.GetAtoms()]
    return tuple(a for a in reaction.atoms("product") if element[partner.get(a, a)] != element[a] or a not in partner)


def _plain(part: Chem.Mol) -> str:
    """SMILES without atom maps."""
    copy = Chem.Mol(part)
    for atom in copy.GetAtoms():
        atom.SetAtomMapNum(0)
    return Chem.MolToSmiles(copy)
