from itertools import pairwise

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.metrics import roc_auc_score

from isotrace.annotation.scores import sequence_level
from isotrace.annotation.scores.sequence_level import (
    effects,
    null_maxima,
    pair_null,
    pool,
    select,
    undefined,
)
from isotrace.annotation.scores.sequence_scores import odds_ratio, score
from isotrace.base.errors import InputError
from isotrace.domains.domain import Concept
from isotrace.stats.permutation import p_values

CLASS, VALUE = Concept("c", "g", "class"), Concept("v", "g", "value")


def activations(rng, rows: int, columns: int, density=0.3, dtype=np.float32) -> np.ndarray:
    """Few distinct values, so that there are ties; the first column is empty, the second the same everywhere, the
    third has no zero."""
    dense = rng.integers(1, 6, (rows, columns)) * (rng.random((rows, columns)) < density)
    dense[:, 0], dense[:, 1], dense[:, 2] = 0, 3, 1 + rng.integers(0, 3, rows)
    return dense.astype(dtype)


def problem(seed: int, n=60, features=12):
    rng = np.random.default_rng(seed)
    dense = activations(rng, n, features)
    numbers = np.column_stack([rng.integers(0, 2, n), rng.integers(0, 5, n), rng.integers(0, 2, n), rng.normal(size=n)])
    numbers = numbers.astype(float)
    numbers[rng.random(n) < 0.2, 2] = np.nan
    numbers[rng.random(n) < 0.2, 3] = np.nan
    return dense, numbers, (CLASS, VALUE, CLASS, VALUE)


def reference(x: np.ndarray, y: np.ndarray, kind: str) -> float:
    """Of the packages everybody uses, in float64."""
    known = ~np.isnan(y)
    x, y = x[known].astype(float), y[known]
    if len(set(x)) < 2 or len(set(y)) < 2:
        return np.nan
    return 2 * roc_auc_score(y, x) - 1 if kind == "class" else float(stats.spearmanr(x, y)[0])


def all_effects(dense, numbers, concepts) -> np.ndarray:
    return np.array([[reference(x, y, c.kind) for y, c in zip(numbers.T, concepts, strict=True)] for x in dense.T])


@pytest.mark.parametrize("entries", [1, 50, 10**6])
def test_pooling_equals_the_dense_loop(monkeypatch, entries):
    monkeypatch.setattr(sequence_level, "POOLED_ENTRIES", entries)
    rng = np.random.default_rng(0)
    dense = activations(rng, 40, 7)
    dense[10:15] = 0
    ptr = np.array([0, 4, 5, 10, 15, 33, 40])
    bounds = list(pairwise(ptr))
    for how, of in (("max", np.max), ("mean", np.mean)):
        found = pool(sparse.csr_matrix(dense), ptr, how)
        np.testing.assert_allclose(found.toarray(), [of(dense[a:b], axis=0) for a, b in bounds], rtol=1e-6)
        assert found.nnz == np.count_nonzero(found.toarray())
        assert found.dtype == np.float32


def test_pooling_refuses_what_it_would_get_wrong():
    with pytest.raises(InputError, match="median"):
        pool(sparse.csr_matrix(np.eye(2)), np.array([0, 2]), "median")
    with pytest.raises(InputError, match="negative"):
        pool(sparse.csr_matrix(-np.eye(2)), np.array([0, 2]), "max")


@pytest.mark.parametrize("seed", range(4))
def test_effects_equal_scikit_learn_and_scipy(seed):
    dense, numbers, concepts = problem(seed)
    found = effects(sparse.csr_matrix(dense), numbers, concepts)
    np.testing.assert_allclose(found, all_effects(dense, numbers, concepts), atol=1e-12)
    # Zeros need not be the lowest: ranks hold for any sign.
    signed = dense * np.where(np.arange(dense.shape[1]) % 2, -1, 1) * np.where(np.arange(60) % 3, 1, -1)[:, None]
    found = effects(sparse.csr_matrix(signed), numbers, concepts)
    np.testing.assert_allclose(found, all_effects(signed, numbers, concepts), atol=1e-12)


def test_an_effect_that_is_not_defined_is_nan_with_its_reason():
    dense, numbers, concepts = problem(0)
    numbers[:, 0], numbers[:, 1], numbers[:, 2] = 1, 2.5, np.nan
    pooled = sparse.csr_matrix(dense)
    found = effects(pooled, numbers, concepts)
    assert np.isnan(found[:, :3]).all()
    assert np.isnan(found[:2, 3]).all()
    assert not np.isnan(found[2:, 3]).any()
    reasons = [undefined(pooled[:, [5]], numbers[:, c], concepts[c].kind) for c in range(4)]
    assert reasons == ["one class only", "the same value everywhere", "not known of any sequence", None]
    assert undefined(pooled[:, [1]], numbers[:, 3], "value") == "the feature is the same on every sequence"
    null = null_maxima(pooled, numbers, concepts, np.zeros(60, int), n_permutations=3, seed=0)
    assert np.isnan(null[:, :3]).all()
    assert (null[:, 3] > 0).all()
    assert len(select(np.full((3, 2), np.nan), per_feature=1, per_concept=1)) == 0


def test_numbers_that_do_not_fit_are_refused():
    dense, numbers, concepts = problem(0)
    with pytest.raises(InputError, match="numbers"):
        effects(sparse.csr_matrix(dense), numbers[:-1], concepts)
    numbers[0, 0] = 2
    with pytest.raises(InputError, match="declare it a value"):
        effects(sparse.csr_matrix(dense), numbers, concepts)


def test_selection_takes_the_best_of_every_feature_and_every_concept():
    effect = np.array([[0.9, -0.2], [0.8, np.nan], [0.1, 0.3], [0.0, -0.95]])
    chosen = select(effect, per_feature=1, per_concept=2)
    pairs = list(zip(chosen.feature.tolist(), chosen.concept.tolist(), chosen.effect.tolist(), strict=True))
    assert pairs == [(0, 0, 0.9), (1, 0, 0.8), (2, 1, 0.3), (3, 1, -0.95)]
    assert len(select(effect, per_feature=0, per_concept=1)) == 2


def test_permuted_effects_equal_a_dense_loop_and_stay_in_their_strata():
    dense, numbers, concepts = problem(3)
    strata = np.repeat([0, 1, 2], 20)
    pooled = sparse.csr_matrix(dense)
    null = null_maxima(pooled, numbers, concepts, strata, n_permutations=5, seed=7)
    for i in range(5):
        key = np.random.default_rng([7, i]).random(60)
        for c, concept in enumerate(concepts):
            y = numbers[:, c].copy()
            for stratum in range(3):
                known = np.flatnonzero((strata == stratum) & ~np.isnan(y))
                y[known] = numbers[known[np.argsort(key[known])], c]
            np.testing.assert_array_equal(np.sort(y[:20]), np.sort(numbers[:20, c]))
            assert null[i, c] == pytest.approx(np.nanmax(abs(all_effects(dense, y[:, None], [concept]))), abs=1e-12)


def test_the_null_is_the_same_in_parts_and_blocks():
    dense, numbers, concepts = problem(1, n=80, features=40)
    pooled, strata = sparse.csr_matrix(dense), np.arange(80) // 20
    whole = null_maxima(pooled, numbers, concepts, strata, n_permutations=20, seed=3)
    for memory in (1, 50_000, 1 << 30):
        again = null_maxima(pooled, numbers, concepts, strata, n_permutations=20, seed=3, memory=memory)
        np.testing.assert_array_equal(whole, again)
    parts = [
        null_maxima(pooled, numbers, concepts, strata, n_permutations=n, seed=3, start=at)
        for at, n in [(0, 7), (7, 13)]
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert (whole != null_maxima(pooled, numbers, concepts, strata, n_permutations=20, seed=4)).any()


def test_an_effect_and_its_own_permutation_compare_exactly():
    # Strata of one sequence leave everything where it is: every permutation ties with what was observed.
    dense, numbers, concepts = problem(2)
    pooled, alone = sparse.csr_matrix(dense), np.arange(60)
    observed = effects(pooled, numbers, concepts)
    null = null_maxima(pooled, numbers, concepts, alone, n_permutations=4, seed=0, memory=1)
    np.testing.assert_array_equal(null, np.broadcast_to(np.nanmax(abs(observed), axis=0), null.shape))
    pairs = select(observed, per_feature=4, per_concept=0)
    own, shuffled = pair_null(pooled, numbers, concepts, pairs, alone, n_permutations=4, seed=0)
    np.testing.assert_array_equal(own, abs(observed[pairs.feature, pairs.concept]))
    np.testing.assert_array_equal(shuffled, np.broadcast_to(own, shuffled.shape))
    assert (p_values(own, shuffled) == 1).all()


def test_pair_nulls_keep_the_direction_and_resume():
    dense, numbers, concepts = problem(5)
    pooled, strata = sparse.csr_matrix(dense), np.zeros(60, int)
    chosen = select(effects(pooled, numbers, concepts), per_feature=1, per_concept=1)
    turned = sequence_level.SequencePairs(chosen.feature, chosen.concept, -chosen.effect)
    args = {"n_permutations": 30, "seed": 1}
    own, null = pair_null(pooled, numbers, concepts, chosen, strata, **args)
    other, negative = pair_null(pooled, numbers, concepts, turned, strata, **args)
    np.testing.assert_array_equal(own, -other)
    np.testing.assert_array_equal(null, -negative)
    _, late = pair_null(pooled, numbers, concepts, chosen, strata, n_permutations=10, seed=1, start=20)
    np.testing.assert_array_equal(null[20:], late)
    largest = null_maxima(pooled, numbers, concepts, strata, **args)
    assert (abs(null) <= largest[:, chosen.concept]).all()


def test_p_is_uniform_without_and_small_with_an_association():
    p = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(0, 3, 60)
        # Activations and classes both depend on length, and on nothing else in common.
        dense = activations(rng, 60, 11, density=0.8)[:, 3:] * (1 + lengths[:, None])
        y = (rng.random(60) < 0.2 + 0.3 * lengths).astype(float)[:, None]
        pooled = sparse.csr_matrix(dense)
        within, across = (
            null_maxima(pooled, y, [CLASS], strata, n_permutations=99, seed=seed) for strata in (lengths, 0 * lengths)
        )
        best = np.nanmax(abs(effects(pooled, y, [CLASS])), axis=0)
        p.append([p_values(best, within)[0], p_values(best, across)[0]])
    within, across = np.transpose(p)
    assert stats.kstest(within, "uniform").pvalue > 0.01
    # Shuffled across lengths, the common cause passes for an association.
    assert stats.kstest(across, "uniform").pvalue < 1e-6
    dense[:, 5] = 2 * y[:, 0] + (np.arange(60) % 3 == 0)
    best = np.nanmax(abs(effects(sparse.csr_matrix(dense), y, [CLASS])), axis=0)
    planted = null_maxima(sparse.csr_matrix(dense), y, [CLASS], lengths, n_permutations=99, seed=0)
    assert p_values(best, planted)[0] == 0.01
    assert np.isnan(p_values(np.array([np.nan]), planted)).all()


def test_scores_and_intervals_equal_resampled_references():
    dense, numbers, concepts = problem(6)
    pooled = sparse.csr_matrix(dense)
    features, columns = np.divmod(np.arange(dense.shape[1] * 4), 4)
    pairs = sequence_level.SequencePairs(features, columns, np.ones(len(features)))
    weights = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=10)
    found = score(pooled, numbers, concepts, pairs, weights)
    for i, (feature, c) in enumerate(zip(features, columns, strict=True)):
        is_class, known = concepts[c].kind == "class", ~np.isnan(numbers[:, c])
        to_value = (lambda effect: (1 + effect) / 2) if is_class else (lambda effect: effect)
        expected = to_value(reference(dense[:, feature], numbers[:, c], concepts[c].kind))
        assert found.value[i] == pytest.approx(expected, abs=1e-12, nan_ok=True)
        drawn = []
        for weight in weights:
            rows = np.repeat(np.arange(60), weight)
            effect = reference(dense[rows, feature], numbers[rows, c], concepts[c].kind)
            drawn.append(to_value(0.0 if np.isnan(effect) else effect))
        expected = np.quantile(drawn, (0.025, 0.975)) if not np.isnan(found.value[i]) else (np.nan, np.nan)
        np.testing.assert_allclose((found.low[i], found.high[i]), expected, atol=1e-10)
        assert found.n_known[i] == known.sum()
        if is_class:
            assert found.n_positive[i] == np.nansum(numbers[:, c])
            odds = odds_ratio(dense[known, feature] > 0, numbers[known, c] == 1)
            np.testing.assert_array_equal((found.odds_ratio[i], found.odds_low[i], found.odds_high[i]), odds)
        else:
            assert np.isnan([found.odds_ratio[i], found.n_positive[i]]).all()


def test_a_draw_with_one_class_only_is_left_out():
    dense, y = np.array([[1.0], [2], [0], [0]]), np.array([[1.0], [1], [0], [0]])
    pairs = sequence_level.SequencePairs(np.array([0]), np.array([0]), np.array([1.0]))
    weights = np.array([[1, 1, 1, 1], [4, 0, 0, 0], [0, 0, 2, 2]])
    found = score(sparse.csr_matrix(dense), y, [CLASS], pairs, weights)
    assert (found.value[0], found.low[0], found.high[0]) == (1, 1, 1)


def test_odds_ratio_by_hand():
    fired = np.repeat([True, True, False, False], [10, 2, 3, 15])
    positive = np.repeat([True, False, True, False], [10, 2, 3, 15])
    error = 1.959964 * np.sqrt(1 / 10.5 + 1 / 2.5 + 1 / 3.5 + 1 / 15.5)
    expected = 18.6 * np.exp([0, -error, error])
    np.testing.assert_allclose(odds_ratio(fired, positive), expected, rtol=1e-6)
    assert odds_ratio(positive, positive)[0] == pytest.approx(13.5 * 17.5 / 0.25)
    assert np.isnan(odds_ratio(np.ones(30, bool), positive)).all()
    assert np.isnan(odds_ratio(fired, np.zeros(30, bool))).all()
