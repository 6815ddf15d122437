"""Numbers and yes-or-no properties of a whole molecule, all by RDKit."""

import math
from collections.abc import Callable

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import QED, rdMolDescriptors

from isotrace.domains.domain import Concept
from isotrace.domains.molecule.atoms import MACROCYCLE

_D = rdMolDescriptors
_WEIGHT = _D.Properties(["amw"])


def _weight(mol: Chem.Mol) -> float:
    return _WEIGHT.ComputeProperties(mol)[0]


def _logp(mol: Chem.Mol) -> float:
    return _D.CalcCrippenDescriptors(mol)[0]


_VALUES: dict[str, Callable[[Chem.Mol], float]] = {
    "molecular weight": _weight,
    "logP": _logp,
    "molar refractivity": lambda m: _D.CalcCrippenDescriptors(m)[1],
    "TPSA": _D.CalcTPSA,
    "hydrogen-bond donors": _D.CalcNumHBD,
    "hydrogen-bond acceptors": _D.CalcNumHBA,
    "rotatable bonds": _D.CalcNumRotatableBonds,
    "rings": _D.CalcNumRings,
    "aromatic rings": _D.CalcNumAromaticRings,
    "aliphatic rings": _D.CalcNumAliphaticRings,
    "heterocycles": _D.CalcNumHeterocycles,
    "heavy atoms": _D.CalcNumHeavyAtoms,
    "heteroatoms": _D.CalcNumHeteroatoms,
    "fraction of sp3 carbons": _D.CalcFractionCSP3,
    "amide bonds": _D.CalcNumAmideBonds,
    "formal charge": Chem.GetFormalCharge,
    "stereocentres": _D.CalcNumAtomStereoCenters,
    "Labute surface area": _D.CalcLabuteASA,
    "QED": QED.qed,
}
_CLASSES: dict[str, Callable[[Chem.Mol], bool]] = {
    "passes Lipinski's rules": lambda m: (
        _weight(m) <= 500 and _logp(m) <= 5 and _D.CalcNumLipinskiHBD(m) <= 5 and _D.CalcNumLipinskiHBA(m) <= 10
    ),
    "chiral molecule": lambda m: any(a.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED for a in m.GetAtoms()),
    "charged molecule": lambda m: Chem.GetFormalCharge(m) != 0,
    "macrocyclic molecule": lambda m: any(len(ring) >= MACROCYCLE for ring in m.GetRingInfo().AtomRings()),
    "ring-free molecule": lambda m: not m.GetRingInfo().NumRings(),
    "several components": lambda m: len(Chem.GetMolFrags(m)) > 1,
}
SEQUENCE_CONCEPTS = (
    *(Concept(name, "molecule", "class") for name in _CLASSES),
    *(Concept(name, "descriptor", "value") for name in _VALUES),
)


def descriptors(mol: Chem.Mol) -> np.ndarray:
    """float64, in the order of `SEQUENCE_CONCEPTS`; NaN where RDKit gives no finite number.

    Hydrogens written as atoms count as the implicit ones do.
    Lipinski's rules (doi 10.1016/S0169-409X(00)00129-0) pass only if all four hold.
    """
    with rdBase.BlockLogs():
        plain = Chem.RemoveHs(mol) if any(a.GetAtomicNum() == 1 for a in mol.GetAtoms()) else mol
    numbers = [float(f(plain)) for f in (*_CLASSES.values(), *_VALUES.values())]
    return np.asarray([n if math.isfinite(n) else math.nan for n in numbers])
