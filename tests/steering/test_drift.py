"""What else moves: numbers of the domain, in standard deviations of the data, by hand."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

from isotrace.domains.domain import domain_of
from isotrace.steering.contrast import Contrast
from isotrace.steering.decoding.run import Design, Designs
from isotrace.steering.trials.arm import Arm
from isotrace.steering.trials.drift import SEQUENCES, drift, property_drift

MOLECULE = domain_of("molecule")
TEXTS = ["CCO", "CCCN", "CCCCO", "CN", "CCF", "CCCCC", "OCCO", "NCCN"]


def arm(*rows):
    """Of (start, text, whether it is valid)."""
    made = tuple(Design(start, text, None if valid else "why", 1) for start, text, valid in rows)
    return Arm(0.1, None, None, Designs("by hand", {}, made, (), (), 0, {}), np.zeros(len(made)))


def tpsa(text):
    return rdMolDescriptors.CalcTPSA(Chem.MolFromSmiles(text))


@pytest.fixture
def contrast(relu_subject):
    return Contrast.of(relu_subject, TEXTS, [*"ab"] * 4)


def test_it_is_the_mean_over_starts_in_spreads_of_the_data(relu_subject, contrast):
    plain = arm((0, "CCO", True), (0, "CCN", True), (1, "CCC", True), (2, "CCF", True))
    steered = arm((0, "OCCO", True), (0, "C(", False), (1, "CCN", True), (1, "CCO", True), (2, "C(", False))
    found = property_drift(relu_subject, MOLECULE, contrast, plain, steered, 0)
    by_start = [tpsa("OCCO") - (tpsa("CCO") + tpsa("CCN")) / 2, (tpsa("CCN") + tpsa("CCO")) / 2 - tpsa("CCC")]
    assert found["TPSA"] == pytest.approx(np.mean(by_start) / np.std([tpsa(text) for text in TEXTS]))
    assert found["logP"] < 0 < found["heteroatoms"]
    assert "rings" not in found, "no molecule of the data has one, so that it has no spread"
    tokens = drift(relu_subject, MOLECULE, contrast, plain, steered)
    lengths = np.std([len(text) for text in TEXTS])
    assert tokens["length"] == pytest.approx(np.mean([4 - 3, 0]) / lengths)
    assert not {"logP", "TPSA"} & {*tokens}


def test_without_a_start_that_has_both_nothing_is_known(relu_subject, contrast):
    found = property_drift(relu_subject, MOLECULE, contrast, arm((0, "CCO", True)), arm((1, "CCN", True)), 0)
    assert found
    assert np.isnan([*found.values()]).all()


def test_unsteered_designs_do_not_drift_from_themselves_and_the_spread_is_of_a_sample(relu_subject):
    texts = ["C" * (1 + i % 12) + "NOF"[i % 3] for i in range(SEQUENCES + 40)]
    contrast, same = Contrast.of(relu_subject, texts, [*"ab"] * (len(texts) // 2)), arm((0, "CCO", True))
    found = property_drift(relu_subject, MOLECULE, contrast, same, same, 0)
    assert {*found.values()} == {0.0}
    longer = property_drift(relu_subject, MOLECULE, contrast, same, arm((0, "CCCCO", True)), 0)
    atoms = [len(text) for text in texts]
    assert longer["heavy atoms"] == pytest.approx(2 / np.std(atoms), rel=0.1)
