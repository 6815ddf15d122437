"""Planted curves are told, curves of nothing are not, and no formula is named that is not the planted one."""

import numpy as np
import pytest

from isotrace.base.errors import InputError
from isotrace.domains.domain import Reading
from isotrace.domains.molecule.tokens import parse
from isotrace.studies.features import response_curves
from isotrace.studies.features.response_curves import (
    Atoms,
    between,
    bins,
    curves,
    exchanged,
    ring_distance,
    source_rows,
)
from isotrace.studies.features.templates import TEMPLATES, fit, named

X = np.sort(np.random.default_rng(5).uniform(-2, 3, 30))
Z = (X - X.min()) / np.ptp(X)
PLANTED = {
    "linear": 3 * Z,
    "relu": np.maximum(Z - 0.5, 0),
    "step": (Z > 0.4).astype(float),
    "saturating": 1 - np.exp(-Z / 0.12),
    "bump": np.exp(-((Z - 0.5) ** 2) / 0.02),
    "power": Z**3,
    "log": np.log(Z + 0.01),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_planted_template_is_named(name, sign):
    y = sign * PLANTED[name]
    noisy = y + 0.005 * np.ptp(y) * np.random.default_rng(0).normal(size=30)
    found = fit(X, noisy)
    assert named(found) == name
    assert found[0].r2 > 0.99
    assert named(fit(1_000 * X - 7, 0.01 * noisy + 3)) == name  # units do not matter


def test_rising_and_falling_are_one_template():
    y = np.maximum(0.4 - Z, 0)
    assert named(fit(X, y + 0.003 * np.random.default_rng(1).normal(size=30))) == "relu"


def test_nothing_is_named_of_noise_and_of_look_alikes():
    rng = np.random.default_rng(2)
    assert [named(fit(X, rng.normal(size=30))) for _ in range(10)].count(None) >= 9
    nearly = [named(fit(X, Z**0.5 + 0.08 * rng.normal(size=30))) for _ in range(5)]
    assert set(nearly) == {None}  # a root, a logarithm and what levels off are not told apart
    with pytest.raises(InputError, match="at least 10"):
        fit(X[:5], Z[:5])


def test_bic_counts_what_is_fitted():
    y = Z + 0.1 * np.random.default_rng(3).normal(size=30)
    found = {one.template.name: one for one in fit(X, y)}
    rss = ((y - np.polyval(np.polyfit(X, y, 1), X)) ** 2).sum()
    assert found["linear"].bic == pytest.approx(30 * np.log(rss / 30) + 2 * np.log(30))
    assert found["constant"].r2 == pytest.approx(0)
    assert {t.name: t.k for t in TEMPLATES} == {
        "constant": 1, "linear": 2, "relu": 4, "step": 3, "saturating": 4, "bump": 4, "power": 3, "log": 3,
    }  # fmt: skip


def planted_atoms(seed: int) -> Atoms:
    """Unit 0 is a ReLU of the charge, unit 1 is anything, unit 2 is as large as its molecule."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(8, 16, 200)
    ptr, n = np.concatenate([[0], np.cumsum(sizes)]), int(sizes.sum())
    x = rng.normal(size=n)
    y = np.stack([np.maximum(x - 0.3, 0) + 0.02 * rng.random(n), rng.random(n), np.repeat(sizes, sizes)], 1)
    return Atoms({"charge": x}, y.astype(np.float32), ptr)


def test_a_planted_unit_follows_and_others_do_not(monkeypatch):
    monkeypatch.setattr(response_curves, "NUMBERS", {"charge": None})
    summary, rows, drawn = source_rows("planted", planted_atoms(0), planted_atoms(1), 3, 99, 0)
    by = {row["unit"]: row for row in rows}
    assert (by[0]["named"], by[0]["template"]) == ("relu", "relu")
    assert by[0]["q"] < 0.05
    assert min(by[1]["q"], by[2]["q"]) > 0.05
    assert (by[1]["named"], by[2]["named"]) == (None, None)
    assert (summary["curves"], summary["without"], summary["relu"]) == (3, 0, 1)
    assert summary["follows"] == pytest.approx(1 / 3)
    curve = dict(drawn)["planted 0, charge"]
    assert (curve.low <= curve.y).all()
    assert (curve.y <= curve.high).all()
    assert curve.high.max() > curve.low.max() > 0.5


def test_the_band_and_the_means_are_those_of_the_bins():
    atoms = planted_atoms(2)
    y, x, ptr = atoms.known("charge")
    curve = curves(y[:, :1], x, ptr, exchanged(ptr, 3, 0), 0)[0]
    at = bins(x)
    assert curve.y == pytest.approx([y[at == b, 0].mean() for b in range(30)], rel=1e-5)
    assert curve.x == pytest.approx([x[at == b].mean() for b in range(30)])
    assert np.bincount(at).min() >= len(x) // 30 - 1
    means = np.asarray([y[at == b].mean(0) for b in range(30)])[at]
    assert between(y, at) == pytest.approx(means.var(0) / y.var(0), rel=1e-4)
    assert len(np.unique(bins(np.repeat([0.0, 1.0, 2.0], 50)))) == 3


def test_unknown_numbers_leave_their_molecule_out():
    chain = Reading("CC", (), parse("CC"), ())
    ring = Reading("C1CC1CC", (), parse("C1CC1CC"), ())
    assert np.isnan(ring_distance(chain)).all()
    assert ring_distance(ring).tolist() == [0, 0, 0, 1, 2]
    x = np.concatenate([ring_distance(chain), ring_distance(ring)])
    y, kept, ptr = Atoms({"d": x}, np.arange(7.0)[:, None], np.array([0, 2, 7])).known("d")
    assert (y[:, 0].tolist(), kept.tolist(), ptr.tolist()) == ([2, 3, 4, 5, 6], [0, 0, 0, 1, 2], [0, 5])
