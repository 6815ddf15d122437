"""Counts of all pairs equal a loop over pairs in plain Python sets; thresholds and levels mean what they say."""

import numpy as np
import pytest
from scipy import sparse

from isotrace.annotation.scores import counting
from isotrace.annotation.scores.counting import count, fire, interplm_f1, thresholds, token_f1
from isotrace.base.errors import InputError
from isotrace.datasets.concept_table import ConceptTable
from isotrace.domains.domain import Concept, Labels
from isotrace.kernels import MissingExtraError
from isotrace.kernels.backend import has_numba

QUANTILES = [0.0, 0.5, 0.9]
BACKENDS = [
    "numpy",
    pytest.param("numba", marks=pytest.mark.skipif(not has_numba(), reason="the optional numba is not installed")),
]


def random_input(seed: int, n_concepts: int = 7, n_features: int = 11) -> tuple[sparse.csr_matrix, ConceptTable]:
    """Activations with a dead feature and one on every token; instances that overlap; a concept without any."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, 12)
    labels = []
    for length in lengths:
        instances = [
            (int(rng.integers(n_concepts - 1)), tuple(rng.choice(length, rng.integers(1, min(length, 9) + 1), False)))
            for _ in range(rng.integers(0, 12))
        ]
        labels.append(Labels(tuple(instances), np.full(n_concepts, np.nan)))
    concepts = [Concept(str(i), "random", "token") for i in range(n_concepts)]
    table = ConceptTable.of(concepts, lengths.tolist(), labels)
    activations = rng.random((table.n_tokens, n_features)) * (rng.random((table.n_tokens, n_features)) < 0.3)
    activations[:, 2] = 0
    activations[:, 5] = 1 + rng.random(table.n_tokens)
    return sparse.csr_matrix(activations.astype(np.float32)), table


def pairwise_counts(activations: np.ndarray, table: ConceptTable, levels: np.ndarray):
    """(hits, touched) of every pair by its definition, on sets."""
    hits, touched = np.zeros((2, len(table.token_concepts), *levels.shape), dtype=np.int64)
    for c in range(len(table.token_concepts)):
        numbers = range(table.concept_ptr[c], table.concept_ptr[c + 1])
        instances = [set(table.tokens[table.instance_ptr[i] : table.instance_ptr[i + 1]].tolist()) for i in numbers]
        union = set().union(*instances)
        for f, row in enumerate(levels):
            for level, threshold in enumerate(row):
                fires = {t for t, value in enumerate(activations[:, f].tolist()) if value > 0 and value >= threshold}
                hits[c, f, level] = len(fires & union)
                touched[c, f, level] = sum(bool(fires & instance) for instance in instances)
    return hits, touched


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_a_loop_over_pairs(backend, seed):
    activations, table = random_input(seed)
    levels = thresholds(activations, QUANTILES)
    counts = count(fire(activations, levels), table, backend=backend)
    hits, touched = pairwise_counts(activations.toarray(), table, levels)
    dense = activations.toarray()[:, :, None]
    np.testing.assert_array_equal(counts.hits, hits)
    np.testing.assert_array_equal(counts.touched, touched)
    np.testing.assert_array_equal(counts.fired, ((dense > 0) & (dense >= levels)).sum(axis=0))
    np.testing.assert_array_equal(counts.positive, table.positive())
    np.testing.assert_array_equal(counts.n_instances, np.diff(table.concept_ptr))
    assert (counts.touched < counts.hits).any()
    assert (counts.touched > counts.hits).any()  # instances overlap
    assert counts.n_instances[-1] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_stretches_of_concepts_put_together_are_the_whole(backend):
    activations, table = random_input(3)
    firing = fire(activations, thresholds(activations, QUANTILES))
    whole = count(firing, table, backend=backend)
    parts = [count(firing, table, part, backend=backend) for part in (slice(0, 3), slice(3, 3), slice(3, None))]
    for name in ("hits", "touched", "positive", "n_instances"):
        np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(whole, name))


def test_f1_is_that_of_precision_and_recall():
    activations, table = random_input(4)
    counts = count(fire(activations, thresholds(activations, QUANTILES)), table)
    tokens, mixed = token_f1(counts), interplm_f1(counts)
    for c, f, level in np.ndindex(*counts.hits.shape):
        hits, fired = int(counts.hits[c, f, level]), int(counts.fired[f, level])
        if hits == 0:
            assert tokens[c, f, level] == mixed[c, f, level] == 0
            continue
        precision, recall = hits / fired, hits / counts.positive[c]
        assert tokens[c, f, level] == pytest.approx(2 * precision * recall / (precision + recall))
        recall = counts.touched[c, f, level] / counts.n_instances[c]
        assert mixed[c, f, level] == pytest.approx(2 * precision * recall / (precision + recall))


def test_a_quantile_is_an_activation_at_its_rank():
    column = np.arange(1, 12, dtype=np.float32)  # ten steps
    activations = sparse.csr_matrix(np.stack([column, np.where(column == 7, column, 0), 0 * column], axis=1))
    found = thresholds(activations, [0.0, 0.5, 0.51, 0.9, 1.0])
    assert found[0, 1:].tolist() == [6, 7, 10, 11]
    assert found[1, 1:].tolist() == [7, 7, 7, 7]
    assert 0 < found[0, 0] == found[1, 0] < 1e-40
    assert np.isinf(found[2]).all()


def test_levels_cover_what_reaches_the_first_threshold(monkeypatch):
    monkeypatch.setattr(counting, "BLOCK", 5)  # several blocks
    rng = np.random.default_rng(0)
    dense = np.round(rng.random((20, 6)), 1).astype(np.float32)  # ties
    activations = sparse.csr_matrix(dense)
    activations.data[3] = 0  # an explicit zero
    dense = activations.toarray()
    levels = thresholds(activations, [0.25, 0.75])
    firing = fire(activations, levels)
    for level in range(2):
        expected = (dense >= levels[:, level]) & (dense > 0)
        np.testing.assert_array_equal(firing.at_least(level).toarray(), expected)
    assert len(firing.level) < activations.nnz


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_activations_no_dictionary_has_are_refused(bad):
    activations, _ = random_input(0)
    levels = thresholds(activations, QUANTILES)
    activations.data[4] = bad
    with pytest.raises(InputError, match="negative or not finite"):
        thresholds(activations, QUANTILES)
    with pytest.raises(InputError, match="negative or not finite"):
        fire(activations, levels)


def test_wrong_arguments_say_so(monkeypatch):
    activations, table = random_input(0)
    levels = thresholds(activations, QUANTILES)
    firing = fire(activations, levels)
    for quantiles in ([], [0.5, 0.5], [0.9, 0.1], [-0.1], [1.1]):
        with pytest.raises(ValueError, match="ascend within"):
            thresholds(activations, quantiles)
    with pytest.raises(InputError, match="one row of thresholds"):
        fire(activations, levels[:-1])
    with pytest.raises(InputError, match="the same tokens"):
        count(firing, table.take(np.arange(3)))
    with pytest.raises(ValueError, match="step 1"):
        count(firing, table, slice(None, None, 2))
    with pytest.raises(ValueError, match="unknown backend 'torch'"):
        count(firing, table, backend="torch")
    monkeypatch.setattr(counting, "has_numba", lambda: False)
    assert not counting.use_numba("auto")
    with pytest.raises(MissingExtraError, match=r"isotrace\[fast\]"):
        count(firing, table, backend="numba")
