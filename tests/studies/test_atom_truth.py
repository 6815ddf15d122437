"""The truths of `atom_truth` by hand, and the scores against what they must add up to."""

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import Crippen

from handbuilt import handbuilt
from isotrace.attribution.trace import TraceConfig, trace
from isotrace.domains.molecule.spelling import Spelling
from isotrace.studies.atoms.forest import Forest
from isotrace.studies.atoms.pairs import cuts, matched_pairs
from isotrace.studies.atoms.rules import RULES, drawn
from isotrace.studies.atoms.scores import METHODS, STEPS, Case, atom_scores, integrated_gradients, shapley
from isotrace.studies.atoms.tasks import crippen
from isotrace.subjects.targets import parse_target

RULE = {rule.name: rule for rule in RULES}


def of(*smiles: str) -> list[Chem.Mol]:
    return [Chem.MolFromSmiles(text) for text in smiles]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    subject, dictionary = handbuilt(tmp_path_factory.mktemp("truth") / "esm", 1.0)
    batch = subject.tokenize(["CNO"])
    config = TraceConfig(sizes=(0.5,), ablation="zero", n_controls=0, n_nodes=2, n_spellings=0)
    units = trace(subject, dictionary, "CNO", "probe:v", config).reading.units
    return Case(subject, dictionary, parse_target("probe:v", subject, batch), batch, units, 0)


def emptied(case: Case) -> float:
    ids = case.batch.ids.clone()
    ids[0, case.places] = case.subject.mask_id
    values = case.values(torch.cat([case.batch.ids, ids]))
    return float(values[0] - values[1])


def test_shapley_values_add_up_to_what_hiding_everything_takes(case):
    assert shapley(case).sum() == pytest.approx(emptied(case), abs=1e-5)


def test_shapley_values_of_few_tokens_are_the_mean_over_all_orders(case, monkeypatch):
    """Three tokens have six orders, which many draws meet equally often."""
    monkeypatch.setattr("isotrace.studies.atoms.scores.ORDERS", 200)
    subject, ids = case.subject, case.batch.ids
    worth = {}
    for subset in range(8):
        row = ids.clone()
        row[0, [p for k, p in enumerate((1, 2, 3)) if subset >> k & 1]] = subject.mask_id
        worth[subset] = case.values(row)[0]
    fall = lambda gone, k: worth[gone] - worth[gone | 1 << k]  # noqa: E731
    expected = [
        fall(0, k) / 3 + fall(7 ^ (1 << k), k) / 3 + sum(fall(1 << j, k) for j in range(3) if j != k) / 6
        for k in range(3)
    ]
    np.testing.assert_allclose(shapley(case)[1:4], expected, atol=0.1 * np.abs(expected).max())


def test_integrated_gradients_add_up_where_the_path_is_fine_enough(case, monkeypatch):
    coarse = abs(integrated_gradients(case).sum() - emptied(case))
    monkeypatch.setattr("isotrace.studies.atoms.scores.STEPS", 64 * STEPS)
    fine = abs(integrated_gradients(case).sum() - emptied(case))
    assert fine < 0.01 * abs(emptied(case))
    assert fine <= coarse


def test_scores_of_atoms_are_in_the_order_of_the_molecule(case):
    written, turned = (atom_scores(case, Spelling("CNO", order), METHODS) for order in ((0, 1, 2), (2, 0, 1)))
    assert set(written) == set(METHODS)
    for name, values in written.items():
        assert turned[name].tolist() == [values[1], values[2], values[0]]
    assert written["signed_effect"][0] > abs(written["signed_effect"][1])


@pytest.mark.parametrize("smiles", ["CC(=O)Oc1ccccc1C(=O)O", "C[N+](C)(C)CC(=O)[O-]", "Clc1ccc2[nH]ccc2c1"])
def test_terms_of_logp_add_up_to_it(smiles):
    (mol,) = of(smiles)
    assert crippen(mol).sum() == pytest.approx(Crippen.MolLogP(mol), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "smiles", "cell", "truth", "decoy"),
    [
        ("motif", "CC(=O)O", 1, {1, 2, 3}, None),
        ("motif", "CC(=O)OC", 0, set(), None),
        ("and", "CC(=O)CCl", 3, {1, 2, 4}, None),
        ("or", "CCCCl", 1, {3}, None),
        ("decoy", "CS(=O)(=O)CC(=O)N", 3, {1, 2, 3}, {5, 6, 7}),
        ("decoy", "CC(=O)N", 1, set(), {1, 2, 3}),
        ("count", "CC(=O)CC(=O)C", 1, {1, 2, 4, 5}, None),
        ("count", "CC(C)=O", 0, {1, 3}, None),
        ("count", "CCO", None, set(), None),
        ("distance", "FCCF", 1, {0, 3}, None),
        ("distance", "FCCCF", 0, {0, 4}, None),
        ("distance", "FCC", None, set(), None),
        ("far distance", "CN(C)CC(=O)C", 1, {0, 1, 2, 3, 4, 5}, None),
    ],
)
def test_rules_name_their_atoms(name, smiles, cell, truth, decoy):
    rule, (mol,) = RULE[name], of(smiles)
    assert rule.cell(mol) == cell
    assert rule.truth(mol) == truth
    assert (None if rule.decoy is None else rule.decoy(mol)) == decoy


def test_cells_are_drawn_equally_often():
    cells = np.array([0] * 50 + [1] * 20 + [3] * 7 + [-1] * 30)
    part = np.arange(107) % 10 > 0
    rows = drawn(cells, part, 100, np.random.default_rng(0))
    counts = np.bincount(cells[rows])
    assert counts[0] == counts[1] == counts[3] == min((cells[part] == c).sum() for c in (0, 1, 3))
    assert part[rows].all()
    assert len(set(rows)) == len(rows)
    assert not len(drawn(np.zeros(9, int), np.ones(9, bool), 5, np.random.default_rng(0))), "one cell has no contrast"


def test_pairs_differ_by_one_substituent_and_their_cores_match_atom_by_atom():
    mols = of("Clc1ccc(CCN)cc1", "NCCc1ccc(Br)cc1", "CCCCCC", "OC(=O)c1ccccc1")
    (pair,) = matched_pairs(mols, 5, 0)
    halves = sorted((pair.first, pair.second), key=lambda half: half.row)
    assert [half.row for half in halves] == [0, 1]
    elements = [[mols[half.row].GetAtomWithIdx(a).GetSymbol() for a in half.core] for half in halves]
    assert elements[0] == elements[1]
    for half in halves:
        assert sorted((*half.core, *half.changed)) == list(range(mols[half.row].GetNumAtoms()))
    assert all(len(changed) < len(core) for mol in mols for *_, core, changed in cuts(mol))


def test_the_atoms_that_a_forest_weighs_are_those_that_decide():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(["C", "O", "N"], 6)) for _ in range(60)]
    texts = [f"{t}Cl" if n % 2 else f"{t}C" for n, t in enumerate(texts)]
    mols = of(*texts)
    labels = np.array([t.endswith("Cl") for t in texts])
    forest = Forest(mols, labels, regression=False, seed=0)
    for text in texts[1:8:2]:
        (mol,) = of(text)
        assert forest.atom_scores(mol)["forest_weights"].argmax() >= mol.GetNumAtoms() - 2
