"""The null of a pair is a literal reshuffle."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from isotrace.annotation.combine import combine, rank
from isotrace.annotation.nulls.permutation import null_maxima, shuffles
from isotrace.annotation.nulls.significance import pair_null
from isotrace.annotation.scores.counting import count, fire, thresholds, token_f1
from isotrace.annotation.site import Sides, SiteResult, examine
from isotrace.stats.permutation import p_values
from tiny_annotation import csc, every_pair, instances_of, random_activations, random_table

THRESHOLD = 0.3


@pytest.mark.parametrize("seed", range(3))
def test_the_null_of_a_pair_is_a_literal_reshuffle(seed):
    table = random_table(seed)
    dense, n = random_activations(seed, table.n_tokens), len(table.token_concepts)
    pairs = every_pair(dense, n, THRESHOLD)
    fixed = np.zeros(table.n_tokens, dtype=bool)
    fixed[table.sequence_ptr[:-1]] = True
    labels = np.zeros((n, table.n_tokens), dtype=bool)
    for concept in range(n):
        labels[concept, list(set().union(*instances_of(table, concept)))] = True

    def f1(shuffled: np.ndarray) -> list[float]:
        found = []
        for feature, concept in zip(pairs.feature, pairs.concept, strict=True):
            fires = dense[:, feature] >= THRESHOLD
            total = fires.sum() + shuffled[concept].sum()
            found.append(2 * (fires & shuffled[concept]).sum() / total if total else 0.0)
        return found

    observed, null = pair_null(csc(dense), table, fixed, pairs, n_permutations=7, seed=seed)
    np.testing.assert_allclose(observed, f1(labels))
    assert len(null) == 7
    for row, source in zip(null, shuffles(table.sequence_ptr, 7, seed, fixed=fixed), strict=True):
        assert (source[fixed] == np.flatnonzero(fixed)).all()
        np.testing.assert_allclose(row, f1(labels[:, source]), rtol=1e-6)
    assert (null != observed).any()


def test_ranks_count_from_the_largest_of_each_key():
    found = rank(np.array([-1, 5, 5, -1, 5]), np.array([0.1, 0.3, 0.9, 0.2, 0.5]))
    assert found.tolist() == [2, 3, 1, 1, 2]
    assert rank(np.array([2, 2, 2]), np.zeros(3)).tolist() == [1, 2, 3]  # ties have different ranks
    assert rank(np.zeros(0, dtype=int), np.zeros(0)).tolist() == []


@pytest.fixture(scope="module")
def examined():
    """A site of 60 sequences, examined whole, and what it was made from."""
    table = random_table(1, n_sequences=120)
    dense = random_activations(1, table.n_tokens)
    held, special = np.arange(120) % 2 == 1, np.zeros(table.n_tokens, dtype=bool)
    special[table.sequence_ptr[:-1]] = True
    sides = Sides.of(table, held, special, share=1.0, seed=0)
    settings = {"quantiles": (0.0, 0.5), "per_feature": 2, "per_concept": 2, "n_permutations": 19, "seed": 0}
    result = examine(sparse.csr_matrix(dense), sides, np.ones((4, 60)), **settings)
    return table, dense, held, special, sides, result


def test_pairs_are_chosen_on_one_side_and_scored_on_the_other(examined):
    table, dense, held, _, sides, result = examined
    rows = [np.flatnonzero(side[table.sequence_of]) for side in (~held, held)]
    np.testing.assert_array_equal(sides.selection.rows, rows[0])
    np.testing.assert_array_equal(sides.held.rows, rows[1])
    assert len(result.pairs) > 5
    for i, (feature, concept) in enumerate(zip(result.pairs.feature, result.pairs.concept, strict=True)):
        carries = np.zeros(table.n_tokens, dtype=bool)
        carries[list(set().union(*instances_of(table, concept)))] = True
        fires = dense[:, feature] >= result.pairs.threshold[i]
        f1 = [2 * (fires & carries)[r].sum() / (fires[r].sum() + carries[r].sum()) for r in rows]
        assert result.f1_selection[i] == pytest.approx(f1[0], rel=1e-6)
        assert result.scores.values["f1"][i] == pytest.approx(f1[1])
    assert result.n_alive == dense.shape[1] - 1  # feature 0 never fires


def test_p_of_a_site_is_that_of_both_sides(examined):
    _, dense, _, _, sides, result = examined
    selected = sparse.csr_matrix(dense[sides.selection.rows])
    firing = fire(selected, thresholds(selected, (0.0, 0.5)))
    part = sides.selection
    maxima = null_maxima(firing, part.table, fixed=part.special, n_permutations=19, seed=0)
    np.testing.assert_array_equal(result.null_max, maxima)
    f1 = token_f1(count(firing, part.table)).max(axis=2)
    np.testing.assert_array_equal(result.f1_selection, f1[result.pairs.concept, result.pairs.feature])
    np.testing.assert_allclose(result.f1_test, result.f1_selection, rtol=1e-6)
    part = sides.held
    observed, null = pair_null(csc(dense[part.rows]), part.table, part.special, result.pairs, n_permutations=19, seed=1)
    np.testing.assert_array_equal(result.p_heldout, p_values(observed, null))
    np.testing.assert_array_equal(result.null95, np.quantile(null, 0.95, axis=0))


def test_a_part_of_the_sequences_is_tested_where_all_take_too_long(examined):
    table, _, held, special, *_ = examined
    sides = Sides.of(table, held, special, share=0.1, seed=3)
    assert sides.selection.table.n_sequences == 60
    assert sides.selection_test.table.n_sequences == sides.held_test.table.n_sequences == 50  # not fewer
    assert set(sides.selection_test.rows) < set(sides.selection.rows)
    assert len(sides.held_test.special) == sides.held_test.table.n_tokens == len(sides.held_test.rows)


def test_a_saved_site_is_the_same(examined, tmp_path):
    result = examined[-1]
    np.savez(tmp_path / "site.npz", **result.arrays())
    found = SiteResult.load(tmp_path / "site.npz")
    for name in ("f1_selection", "f1_test", "p_heldout", "null95", "null_max", "n_features", "n_alive"):
        np.testing.assert_array_equal(getattr(found, name), getattr(result, name))
    for name, value in (vars(result.pairs) | result.scores.values).items():
        np.testing.assert_array_equal((vars(found.pairs) | found.scores.values)[name], value)
    np.testing.assert_array_equal(found.scores.draws, result.scores.draws)


def test_layers_are_corrected_for_together(examined):
    """Two layers: a concept's null is the larger of both, its best pair the one of either."""
    result = examined[-1]
    concepts = examined[0].token_concepts
    other = replace(result, f1_test=result.f1_test + 0.01, f1_selection=result.f1_selection + 0.01,
                    null_max=np.random.default_rng(0).permutation(result.null_max) + np.float32(0.02))  # fmt: skip
    found = combine("some", {2: result, 5: other}, concepts).frame
    null = np.maximum(result.null_max, other.null_max)
    n = len(result.pairs)
    for part, layer, rows in ((result, 2, slice(0, n)), (other, 5, slice(n, 2 * n))):
        own = found[rows]
        assert own["layer"].unique().to_list() == [layer]
        expected = [p_values(part.f1_test[i : i + 1], null[:, [c]])[0] for i, c in enumerate(part.pairs.concept)]
        np.testing.assert_array_equal(own["p_selection"], expected)
        np.testing.assert_array_equal(own["p_heldout"], part.p_heldout)
    assert (found["p_selection"] < found["p_heldout"]).any()
    assert (found["p"] == np.maximum(found["p_selection"], found["p_heldout"])).all()
    best = found.filter(concept_rank=1)
    assert best["concept"].is_unique().all()
    assert set(best["layer"]) == {5}
    assert found.group_by("layer", "feature").agg(pl.col("feature_rank").min())["feature_rank"].to_list() == [1] * (
        2 * len(set(result.pairs.feature.tolist()))
    )


def test_the_interval_of_a_count_is_that_of_its_draws(examined):
    result, concepts = examined[-1], examined[0].token_concepts
    n, rng = len(result.pairs), np.random.default_rng(0)
    draws = rng.random((n, 50)).astype(np.float32)
    sure = replace(result, p_heldout=np.full(n, 0.01), null_max=np.zeros((99, len(concepts)), np.float32),
                   scores=replace(result.scores, draws=draws))  # fmt: skip
    found = combine("some", {0: sure}, concepts)
    best = found.frame["concept_rank"].to_numpy() == 1
    assert (found.frame["q"].to_numpy()[best] < 0.05).all()
    for name, least in (("f1_50", 0.5), ("f1_80", 0.8)):
        drawn = np.quantile((draws[best] >= least).sum(axis=0), (0.025, 0.975))
        count = int((found.frame["f1"].to_numpy()[best] >= least).sum())
        assert found.counts[name] == (count, *(round(value) for value in drawn.tolist()))
    none = combine("some", {0: replace(sure, p_heldout=np.ones(n))}, concepts)
    assert none.counts == {"f1_50": (0, 0, 0), "f1_80": (0, 0, 0)}
