"""Screening: what is hidden is what a masked input gives, and the table over molecules adds up."""

import numpy as np
import pytest
import torch

import tiny
from isotrace.attribution.screen.screen import screen
from isotrace.attribution.screen.substructures import Found, over_molecules
from isotrace.datasets.annotated import read
from isotrace.domains.molecule.domain import MOLECULE
from isotrace.subjects.targets import Target

TEXT = "CC(=O)Oc1ccccc1C"


@pytest.fixture
def screened(rotary):
    batch = rotary.tokenize([TEXT])
    reading = read(rotary, MOLECULE, TEXT)[1]
    target = Target("probe", "probe:tiny", "a random probe", "1", probe=tiny.random_probe(rotary, layers=(0, 2)))
    dictionary = tiny.random_dictionary(rotary)
    return rotary, batch, reading, target, screen(rotary, dictionary, MOLECULE, reading, batch, target, n_features=5)


def test_hiding_is_a_mask_token_in_the_running_subject(screened):
    subject, batch, reading, target, found = screened

    def value(ids):
        other = batch.with_ids(ids)
        return float(target.value(subject, other, target.hidden(subject, other)))

    assert found.value == pytest.approx(value(batch.ids), rel=1e-5)
    assert set(found.atoms) == set(range(reading.parsed.GetNumAtoms()))
    ester = next(part for part in found.substructures if part.name == "ester")
    for tokens, effect in [(ester.at, ester.effect)] + [
        ((place,), found.atoms[unit.atoms[0]]) for place, unit in enumerate(reading.units) if unit.kind == "atom"
    ]:
        ids = batch.ids.clone()
        ids[0, list(tokens)] = subject.mask_id
        assert effect == pytest.approx(value(batch.ids) - value(ids), abs=1e-5)
    assert {reading.units[place].kind for part in found.substructures for place in part.at} == {"atom"}


def test_features_are_those_of_the_largest_first_order_effect(screened):
    found = screened[-1]
    sizes = [abs(effect) for *_, effect in found.features]
    assert len(sizes) == 5
    assert sizes == sorted(sizes, reverse=True)


def test_a_mean_over_molecules_is_one_of_means_within_them():
    def one(*parts):
        return [Found("acid", (), e, r) for e, r in parts]

    rows = over_molecules([one((1.0, 0.0), (3.0, 2.0)), one((4.0, np.nan)), *[one((2.0, 1.0))] * 4])
    (row,) = rows
    assert row["molecules"] == 6
    assert row["effect"] == pytest.approx((2 + 4 + 4 * 2) / 6)
    assert row["random"] == pytest.approx((1 + 4 * 1) / 5), "a molecule without other atoms says nothing"
    assert row["beyond"] == pytest.approx(1.0)
    assert row["beyond_ci"] == pytest.approx([1.0, 1.0])
    (few,) = over_molecules([one((1.0, 0.0))])
    assert few["effect_ci"] is None


def test_the_mask_of_a_target_stays_and_is_no_atom(rotary):
    batch = rotary.tokenize([TEXT])
    reading = read(rotary, MOLECULE, TEXT)[1]
    _, target = tiny.prepared("mask", rotary, TEXT)
    dictionary = tiny.random_dictionary(rotary)
    found = screen(rotary, dictionary, MOLECULE, reading, target.prepare(rotary, batch), target, n_features=1)
    hidden = reading.units[2].atoms
    assert not set(hidden) & set(found.atoms)
    assert torch.isfinite(torch.tensor(list(found.atoms.values()))).all()
