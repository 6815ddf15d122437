"""All F1s of pairs equal their definitions, spelled out on sets; the best pairs are kept; draws are resamples."""

import numpy as np
import pytest

from isotrace.annotation.scores.token_scores import F1S, Pairs, choose, score
from isotrace.datasets.concept_table import ConceptTable
from isotrace.domains.domain import Concept, Labels
from isotrace.stats.bootstrap import bootstrap_weights
from tiny_annotation import csc, every_pair, instances_of, random_activations, random_table

THRESHOLD = 0.3


def runs_of(fires: set[int], table: ConceptTable) -> list[set[int]]:
    """Longest stretches of neighbouring tokens of one sequence that all fire."""
    found: list[set[int]] = []
    for start, stop in zip(table.sequence_ptr[:-1], table.sequence_ptr[1:], strict=True):
        before = False
        for token in range(start, stop):
            if token in fires and not before:
                found.append(set())
            if token in fires:
                found[-1].add(token)
            before = token in fires
    return found


def mean(flags: list[bool]) -> float:
    return sum(flags) / len(flags) if flags else np.nan


def harmonic(precision: float, recall: float) -> float:
    if np.isnan(recall):
        return np.nan
    if np.isnan(precision) or not precision + recall:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def by_definition(fires: set[int], table: ConceptTable, concept: int) -> dict[str, float]:
    instances = instances_of(table, concept)
    carries, runs = set().union(*instances), runs_of(fires, table)
    precision = mean([token in carries for token in fires])
    recall = mean([token in fires for token in carries])
    any_hit = mean([bool(instance & fires) for instance in instances])
    full = mean([instance <= fires for instance in instances])
    return {
        "precision": precision,
        "recall": recall,
        "f1": harmonic(precision, recall),
        "f1_any": harmonic(mean([bool(run & carries) for run in runs]), any_hit),
        "f1_full": harmonic(mean([run <= carries for run in runs]), full),
        "f1_interplm": harmonic(precision, any_hit),
        "f1_intermol": harmonic(precision, full),
    }


@pytest.mark.parametrize("seed", range(6))
def test_every_f1_is_that_of_its_definition(seed):
    table = random_table(seed)
    dense, n = random_activations(seed, table.n_tokens), len(table.token_concepts)
    pairs = every_pair(dense, n, THRESHOLD)
    found = score(csc(dense), table, pairs, bootstrap_weights(table.n_sequences, 3, seed))
    for row, (feature, concept) in enumerate(zip(pairs.feature, pairs.concept, strict=True)):
        fires = set(np.flatnonzero(dense[:, feature] >= THRESHOLD).tolist())
        instances = instances_of(table, concept)
        assert found.n_fired[row] == len(fires)
        assert found.n_instances[row] == len(instances)
        assert found.n_positive[row] == len(set().union(*instances))
        for name, value in by_definition(fires, table, concept).items():
            assert found.values[name][row] == pytest.approx(value, nan_ok=True), name
    silent, without = pairs.feature == 0, pairs.concept == n - 1
    assert np.isnan([found.values[name][without] for name in F1S]).all()
    assert (np.asarray([found.values[name][silent & ~without] for name in F1S]) == 0).all()
    spread = [np.ptp([found.values[name][row] for name in F1S]) for row in np.flatnonzero(~silent & ~without)]
    assert max(spread) > 0.2  # the definitions differ


def test_runs_end_with_their_sequence():
    """Tokens 2 and 3 are neighbours of different sequences: two runs, one of which touches the concept."""
    labels = [Labels(((0, (2,)),), np.array([np.nan])), Labels((), np.array([np.nan]))]
    table = ConceptTable.of([Concept("end", "test", "token")], [3, 3], labels)
    dense = np.zeros((6, 1), dtype=np.float32)
    dense[2:4] = 1
    found = score(csc(dense), table, every_pair(dense, 1, 0.5), np.ones((1, 2)))
    assert found.values["f1_any"][0] == found.values["f1_full"][0] == pytest.approx(2 * 0.5 / 1.5)
    joined = ConceptTable.of([Concept("end", "test", "token")], [6], [labels[0]])
    found = score(csc(dense), joined, every_pair(dense, 1, 0.5), np.ones((1, 1)))
    assert (found.values["f1_any"][0], found.values["f1_full"][0]) == (1.0, 0.0)


@pytest.mark.parametrize(("per_feature", "per_concept"), [(1, 0), (0, 1), (3, 2), (50, 50)])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_pairs_of_features_and_concepts_are_kept(seed, per_feature, per_concept):
    rng = np.random.default_rng(seed)
    f1 = rng.permutation(5 * 8 * 3).reshape(5, 8, 3).astype(np.float32) / 120  # no ties but at one 0
    f1[:, 4], f1[2] = 0, 0
    levels = rng.random((8, 3)).astype(np.float32)
    pairs = choose(f1, levels, per_feature=per_feature, per_concept=per_concept)
    best, wanted = f1.max(axis=2), set()
    for feature in range(8):
        ranked = sorted(range(5), key=lambda c: -best[c, feature])[:per_feature]
        wanted |= {(c, feature) for c in ranked if best[c, feature] > 0}
    for concept in range(5):
        ranked = sorted(range(8), key=lambda f: -best[concept, f])[:per_concept]
        wanted |= {(concept, f) for f in ranked if best[concept, f] > 0}
    found = list(zip(pairs.concept.tolist(), pairs.feature.tolist(), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == wanted
    for feature, concept, level, threshold in zip(*vars(pairs).values(), strict=True):
        assert f1[concept, feature, level] == best[concept, feature]
        assert threshold == levels[feature, level]


def test_ties_keep_as_many_pairs_as_asked():
    f1 = np.full((3, 6, 2), 0.5, dtype=np.float32)
    pairs = choose(f1, np.ones((6, 2), dtype=np.float32), per_feature=0, per_concept=2)
    assert np.bincount(pairs.concept).tolist() == [2, 2, 2]
    assert (pairs.level == 0).all()  # the lowest threshold of those that tie
    assert len(choose(np.zeros_like(f1), np.ones((6, 2)), per_feature=3, per_concept=3)) == 0
    assert len(choose(f1[:0], np.ones((6, 2)), per_feature=3, per_concept=3)) == 0


@pytest.mark.parametrize("seed", range(2))
def test_draws_are_the_f1_of_resampled_sequences(seed):
    table = random_table(seed)
    dense = random_activations(seed, table.n_tokens)
    pairs = every_pair(dense, len(table.token_concepts), THRESHOLD)
    weights = bootstrap_weights(table.n_sequences, 8, seed)
    draws = score(csc(dense), table, pairs, weights).draws
    owner = table.sequence_of
    for row, (feature, concept) in enumerate(zip(pairs.feature, pairs.concept, strict=True)):
        carries = np.zeros(table.n_tokens, dtype=bool)
        carries[list(set().union(*instances_of(table, concept)))] = True
        fires = dense[:, feature] >= THRESHOLD
        for draw in range(8):
            resampled = np.concatenate(
                [np.flatnonzero(owner == s) for s in np.repeat(np.arange(table.n_sequences), weights[draw].astype(int))]
            )
            hits, total = (fires & carries)[resampled].sum(), fires[resampled].sum() + carries[resampled].sum()
            expected = 2 * hits / total if total else np.nan
            assert draws[row, draw] == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_no_pairs_no_scores():
    table = random_table(0)
    none = Pairs(*np.zeros((3, 0), dtype=int), np.zeros(0, dtype=np.float32))
    found = score(csc(random_activations(0, table.n_tokens)), table, none, np.ones((4, table.n_sequences)))
    assert found.draws.shape == (0, 4)
    assert all(len(value) == 0 for value in found.values.values())
