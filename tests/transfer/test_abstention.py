"""What is recommended, and when nothing is: shuffled labels, few of them, molecules unlike the corpus."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import GroupKFold

from isotrace.base.errors import InputError
from isotrace.domains.domain import domain_of
from isotrace.transfer.judging.abstention import decide, similarity_to_corpus


def crossed(x, y, groups, fit):
    found = np.zeros((len(y), 1))
    for train, test in GroupKFold(5).split(x, y, groups):
        found[test, 0] = fit(x[train], y[train], x[test])
    return found


def ridge(x, y, new):
    mean, weight = y.mean(), np.linalg.solve(x.T @ x + 30 * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    return new @ weight + mean


def forest(x, y, new):
    return RandomForestRegressor(5, random_state=0, max_features=0.3).fit(x, y).predict(new)


def trial(seed, shuffled, n=120):
    """Four checkpoints, the first of which knows the label, and a forest on bits that know less of it."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(40, size=n)
    checkpoints = [rng.standard_normal((n, 30)) for _ in range(4)]
    bits = (rng.random((n, 40)) < 0.3).astype(float)
    y = checkpoints[0][:, :3].sum(1) + bits[:, :2].sum(1) + 0.3 * rng.standard_normal(n)
    y = rng.permutation(y) if shuffled else y
    outputs = {f"c{i}": crossed(x, y, groups, ridge) for i, x in enumerate(checkpoints)}
    return outputs, crossed(bits, y, groups, forest), y, [str(g) for g in groups]


@pytest.mark.parametrize("trials", [20, pytest.param(100, marks=pytest.mark.nightly)])
def test_shuffled_labels_are_abstained_on(trials):
    told = [decide(*trial(s, True), "r2", np.ones(120), seed=s, n_draws=300).choice for s in range(trials)]
    assert sum(choice is None for choice in told) >= 0.95 * trials


def test_a_checkpoint_that_leads_is_recommended():
    for seed in range(3):
        found = decide(*trial(seed, False), "r2", np.ones(120), seed=seed, n_draws=300)
        assert found.choice == found.best == "c0"
        assert 0 < found.low < found.lead < found.high
        assert found.lead == pytest.approx(found.scores["c0"] - found.scores["forest"])


def test_the_forest_is_recommended_where_it_leads():
    outputs, of_bits, y, groups = trial(0, False)
    found = decide({"c1": outputs["c1"]}, outputs["c0"], y, groups, "r2", np.ones(120), seed=0)
    assert found.choice == "forest"
    assert found.high < 0
    none = decide({"c1": of_bits}, of_bits, y, groups, "r2", np.ones(120), seed=0)
    assert none.choice is None
    assert "may be 0" in none.reason


def test_reasons_not_to_tell():
    outputs, of_bits, y, groups = trial(0, False)
    few = decide({k: v[:49] for k, v in outputs.items()}, of_bits[:49], y[:49], groups[:49], "r2", np.ones(49), seed=0)
    assert (few.choice, "49 labels" in few.reason) == (None, True)
    far = decide(outputs, of_bits, y, groups, "r2", np.full(120, 0.29), seed=0)
    assert (far.choice, "outside the corpus" in far.reason) == (None, True)
    assert "outside" in decide(outputs, of_bits, y, groups, "r2", np.full(120, np.nan), seed=0).reason
    wild = of_bits + 100 * np.random.default_rng(0).standard_normal(of_bits.shape)
    flat = np.full_like(of_bits, y.mean() + 0.01)
    nothing = decide({"flat": flat}, wild, y, groups, "r2", np.ones(120), seed=0)
    assert (nothing.choice, nothing.low > 0) == (None, True)
    assert "better than a constant" in nothing.reason
    with pytest.raises(InputError, match="none of them called forest"):
        decide({}, of_bits, y, groups, "r2", np.ones(120), seed=0)
    with pytest.raises(InputError, match="in rmse is not known"):
        decide(outputs, of_bits, y, groups, "rmse", np.ones(120), seed=0)
    with pytest.raises(InputError, match="all equal"):
        decide(outputs, of_bits, np.ones(120), groups, "auroc", np.ones(120), seed=0)


def test_similarity_by_hand():
    molecule = domain_of("molecule")
    texts, corpus = ["CCO", "c1ccccc1O", "[Na+].[Cl-]"], ["OCC", "c1ccccc1", "CCCC"]
    found = similarity_to_corpus(molecule, texts, corpus)
    assert found[0] == pytest.approx(1)
    sets = [[{*np.flatnonzero(bits)} for bits in molecule.fingerprints(some)] for some in (texts, corpus)]
    assert found == pytest.approx([max(len(a & b) / len(a | b) for b in sets[1]) for a in sets[0]])
    assert similarity_to_corpus(molecule, texts, []).tolist() == [0, 0, 0]
    assert np.array_equal(similarity_to_corpus(molecule, texts, corpus * 1_500), found)
