"""Another model beside it, for reference: a random forest on ECFP4, and two ways to read its atoms."""

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from isotrace.domains.molecule.domain import ecfp4

BITS = 2_048


class Forest:
    """Fitted on `mols`; `labels` 0 and 1, or numbers with `regression`."""

    def __init__(self, mols: Sequence[Chem.Mol], labels: np.ndarray, *, regression: bool, seed: int) -> None:
        self.generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=BITS)
        if regression:
            self.model = RandomForestRegressor(100, random_state=seed, min_samples_leaf=2, max_features=0.1)
        else:
            self.model = RandomForestClassifier(100, random_state=seed, min_samples_leaf=2)
        self.model.fit(self.bits(mols), labels)
        self.explainer = None
        if find_spec("shap") is not None:
            from shap import TreeExplainer  # pyright: ignore[reportMissingImports]

            self.explainer = TreeExplainer(self.model)

    def bits(self, mols: Sequence[Chem.Mol]) -> np.ndarray:
        return ecfp4(mols)

    def predicted(self, bits: np.ndarray) -> np.ndarray:
        """Probability of label 1, or the number."""
        if isinstance(self.model, RandomForestClassifier):
            return np.asarray(self.model.predict_proba(bits))[:, 1]
        return self.model.predict(bits)

    def atom_scores(self, mol: Chem.Mol) -> dict[str, np.ndarray]:
        """`[atoms]`. `forest_weights`: fall of the prediction without the environments that hold the atom (Riniker &
        Landrum 2013). `forest_shap`: SHAP values of the bits (Lundberg et al. 2020), each shared evenly by the atoms of
        its environments; missing without the package shap."""
        output = rdFingerprintGenerator.AdditionalOutput()
        output.AllocateBitInfoMap()
        own = self.generator.GetFingerprintAsNumPy(mol, additionalOutput=output)
        places = [(bit, _environment(mol, *at)) for bit, found in output.GetBitInfoMap().items() for at in found]
        without = np.zeros((mol.GetNumAtoms(), BITS), own.dtype)
        for bit, atoms in places:
            without[[a for a in range(len(without)) if a not in atoms], bit] = 1
        values = self.predicted(np.concatenate([own[None], without]))
        found = {"forest_weights": values[0] - values[1:]}
        if self.explainer is not None:
            shares = np.asarray(self.explainer.shap_values(own[None], check_additivity=False))[0]
            shares = shares[:, 1] if shares.ndim == 2 else shares
            found["forest_shap"] = np.zeros(len(without))
            times = {bit: sum(b == bit for b, _ in places) for bit, _ in places}
            for bit, atoms in places:
                found["forest_shap"][list(atoms)] += shares[bit] / times[bit] / len(atoms)
        return found


def _environment(mol: Chem.Mol, centre: int, radius: int) -> frozenset[int]:
    bonds = Chem.FindAtomEnvironmentOfRadiusN(mol, radius, centre) if radius else ()
    whole = [mol.GetBondWithIdx(bond) for bond in bonds]
    return frozenset((centre, *(b.GetBeginAtomIdx() for b in whole), *(b.GetEndAtomIdx() for b in whole)))
