"""Overlap between circuits against enumeration, draws and SciPy."""

from itertools import combinations

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.stats.contingency import odds_ratio

from isotrace.base.errors import InputError
from isotrace.discovery.overlap import overlap
from isotrace.discovery.tasks.basis import Statistics


class Sizes:
    """All that the overlap asks of a basis."""

    def __init__(self, *sizes):
        self.sizes = sizes


def keep(*layers):
    return tuple(torch.tensor(kept, dtype=torch.long) for kept in layers)


def test_one_layer_is_fishers_exact_test():
    one, other = set(range(12)), set(range(5, 15))
    (row,) = overlap({"a": keep([*one]), "b": keep([*other])}, Sizes(60))
    table = [[7, 5], [3, 45]]
    assert (row["shared"], row["n_a"], row["n_b"]) == (7, 12, 10)
    assert row["jaccard"] == 7 / 15
    assert row["expected"] == pytest.approx(12 * 10 / 60)
    assert row["ratio"] == pytest.approx(3.5)
    assert row["p"] == pytest.approx(scipy.stats.fisher_exact(table, alternative="greater").pvalue, rel=1e-9)
    interval = odds_ratio(table, kind="conditional").confidence_interval(0.95)
    means = [scipy.stats.nchypergeom_fisher(60, 12, 10, odds).mean() for odds in interval]
    assert row["ratio_ci"] == pytest.approx([mean / 2 for mean in means], rel=1e-5)
    assert row["expected_ci"] == [*scipy.stats.hypergeom(60, 12, 10).ppf([0.025, 0.975])]


def test_several_layers_against_all_pairs_of_circuits():
    """Every way to choose 2 of 4 in one layer and 1 of 3 in the next, for both circuits."""
    (row,) = overlap({"a": keep([0, 1], [2], []), "b": keep([1, 2], [2], [0])}, Sizes(4, 3, 5))
    first = [set(c) for c in combinations(range(4), 2)]
    second = [{i} for i in range(3)]
    shared = np.array([len(a & b) + len(c & d) for a in first for b in first for c in second for d in second])
    assert row["shared"] == 2
    assert row["expected"] == pytest.approx(shared.mean())
    assert row["p"] == pytest.approx((shared >= 2).mean())


def test_layers_count_apart():
    """Circuits in different layers share nothing and could not; the same index elsewhere is another part."""
    rows = overlap({"a": keep([0, 1], []), "b": keep([], [0, 1]), "c": keep([2], [0, 1])}, Sizes(6, 6))
    assert [(r["a"], r["b"], r["shared"]) for r in rows] == [("a", "b", 0), ("a", "c", 0), ("b", "c", 2)]
    assert rows[0]["expected"] == 0
    assert np.isnan(rows[0]["ratio"])
    assert np.isnan(rows[0]["ratio_ci"]).all()
    assert rows[0]["p"] == rows[1]["p"] == 1
    assert rows[1]["ratio_ci"][0] == 0
    assert rows[2]["p"] == pytest.approx(1 / 15)


def test_circuits_that_prefer_frequent_parts_overlap_by_chance():
    """Drawn independently among the frequent parts: too many shared for the layer's null, as expected for the
    matched one, whose p is then uniform."""
    rng = np.random.default_rng(0)
    density = rng.permutation(np.linspace(0, 1, 200) ** 4).astype(np.float32)
    statistics = Statistics((torch.zeros(200),), (torch.from_numpy(density),))
    plain, fair = [], []
    for _ in range(300):
        a, b = (rng.choice(200, 20, replace=False, p=density / density.sum()) for _ in range(2))
        circuits = {"a": keep(a), "b": keep(b)}
        plain.append(overlap(circuits, Sizes(200))[0])
        fair.append(overlap(circuits, Sizes(200), statistics)[0])
    assert np.mean([r["ratio"] for r in plain]) > 1.8
    assert np.mean([r["shared"] for r in fair]) == pytest.approx(np.mean([r["expected"] for r in fair]), rel=0.1)
    assert np.mean([r["p"] <= 0.05 for r in plain]) > 0.5
    assert np.mean([r["p"] <= 0.05 for r in fair]) <= 0.08
    assert np.mean([r["ratio_ci"][0] <= 1 <= r["ratio_ci"][1] for r in fair]) >= 0.93
    assert fair[0]["matched"] == "layer and density"


def test_the_same_circuit_twice():
    (row,) = overlap({"a": keep([3, 5, 8]), "b": keep([8, 3, 5])}, Sizes(10))
    assert (row["shared"], row["jaccard"]) == (3, 1.0)
    assert row["p"] == pytest.approx(1 / 120)
    assert row["ratio_ci"][1] == row["ratio"] == pytest.approx(10 / 3)
    assert row["ratio_ci"][0] < row["ratio"]


@pytest.mark.parametrize("wrong", [keep([10], [0]), keep([-1], [0]), keep([0]), keep([1, 1], [0])])
def test_parts_that_do_not_exist(wrong):
    with pytest.raises(InputError, match="circuit 'b' is none of this basis"):
        overlap({"a": keep([0], [0]), "b": wrong}, Sizes(10, 10))
