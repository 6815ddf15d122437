"""Features against concepts: planted truth is found, shuffled labels give nothing, numbers equal a dense loop."""

import numpy as np
import pytest
from scipy import sparse

from isotrace.annotation import associate
from isotrace.annotation.associations import QUANTILES
from isotrace.errors import InputError

N_MOLECULES, LENGTH, N_FEATURES, N_CONCEPTS = 120, 25, 40, 12
TOKENS = N_MOLECULES * LENGTH
NAMES = [f"concept {i}" for i in range(N_CONCEPTS)]
MOLECULE = np.repeat(np.arange(N_MOLECULES), LENGTH)
SELECTION = np.arange(N_MOLECULES) % 2 == 0
QUICK = {"names": NAMES, "seed": 0, "n_permutations": 20, "n_bootstrap": 100}


def random_input(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Dense activations and concepts without any relation."""
    rng = np.random.default_rng(seed)
    activations = rng.random((TOKENS, N_FEATURES), dtype=np.float32) * (rng.random((TOKENS, N_FEATURES)) < 0.1)
    return activations.astype(np.float32), rng.random((TOKENS, N_CONCEPTS)) < 0.12


def planted_input() -> tuple[np.ndarray, np.ndarray]:
    """Feature 3 is strong on concept 7 and weak elsewhere; feature 5 is concept 2 with one in five missed."""
    rng = np.random.default_rng(1)
    activations, concepts = random_input()
    weak = rng.random(TOKENS) < 0.3
    activations[:, 3] = np.where(concepts[:, 7], 2 + rng.random(TOKENS), 0.5 * weak)
    activations[:, 5] = np.where(concepts[:, 2] & (rng.random(TOKENS) < 0.8), 1 + rng.random(TOKENS), 0)
    return activations, concepts


def run(activations, concepts, **changes):
    arguments = QUICK | changes
    molecule, selection = arguments.pop("molecule", MOLECULE), arguments.pop("selection", SELECTION)
    return associate(sparse.csr_matrix(activations), sparse.csr_matrix(concepts), molecule, selection, **arguments)


def f1_of(fires: np.ndarray, concept: np.ndarray) -> float:
    hits = int((fires & concept).sum())
    return 2 * hits / (int(fires.sum()) + int(concept.sum()))


def dense_loop(activations, concepts, feature: int) -> tuple[int, float, float, np.ndarray]:
    """Best concept, its threshold, its selection F1 and where the feature fires, pair by pair."""
    chosen = SELECTION[MOLECULE]
    positive = activations[chosen, feature][activations[chosen, feature] > 0]
    best: tuple[int, float, float] = (-1, 0.0, -1.0)
    for threshold in np.quantile(positive, QUANTILES, method="higher"):
        for concept in range(N_CONCEPTS):
            f1 = f1_of(activations[chosen, feature] >= threshold, concepts[chosen, concept])
            if f1 > best[2]:
                best = (concept, float(threshold), f1)
    return best[0], best[1], best[2], activations[:, feature] >= best[1]


@pytest.fixture(scope="module")
def planted():
    activations, concepts = planted_input()
    return activations, concepts, run(activations, concepts)


def test_planted_features_get_their_concepts_and_no_other_feature_a_label(planted):
    labels = planted[2]["label"].to_list()
    assert {i: label for i, label in enumerate(labels) if label != "unexplained"} == {3: "concept 7", 5: "concept 2"}


@pytest.mark.parametrize("feature", range(N_FEATURES))
def test_scores_equal_a_dense_loop(planted, feature):
    activations, concepts, table = planted
    row = table.row(feature, named=True)
    concept, threshold, f1_selection, fires = dense_loop(activations, concepts, feature)
    held = ~SELECTION[MOLECULE]
    fires, positive = fires[held], concepts[held, concept]
    assert row["feature"] == feature
    assert (row["concept_index"], row["concept"]) == (concept, NAMES[concept])
    assert row["threshold"] == pytest.approx(threshold)
    assert row["f1_selection"] == pytest.approx(f1_selection)
    assert row["f1"] == pytest.approx(f1_of(fires, positive))
    assert row["precision"] == pytest.approx((fires & positive).sum() / fires.sum())
    assert row["recall"] == pytest.approx((fires & positive).sum() / positive.sum())
    assert row["n_positive"] == positive.sum()


def test_the_threshold_cuts_off_weak_firing(planted):
    row = planted[2].row(3, named=True)
    assert row["threshold"] > 0.5
    assert row["precision"] == 1


def test_p_is_that_of_shuffling_within_molecules(planted):
    """The closed form against 4,000 shuffles of the held-out labels, on a feature whose p is neither 0 nor 1."""
    activations, concepts, table = planted
    held = ~SELECTION[MOLECULE]
    unclear = table.filter(table["p"].is_between(0.02, 0.5)).row(0, named=True)
    fires = activations[held, unclear["feature"]] >= np.float32(unclear["threshold"])
    positive = concepts[held, unclear["concept_index"]].reshape(-1, LENGTH)
    rng = np.random.default_rng(2)
    hits = [(rng.permuted(positive, axis=1).ravel() & fires).sum() for _ in range(4000)]
    shuffled = np.mean(np.array(hits) >= (positive.ravel() & fires).sum())
    assert unclear["p"] == pytest.approx(shuffled, abs=0.03)


def test_interval_holds_the_estimate_and_narrows_with_more_molecules(planted):
    activations, concepts, table = planted
    found = table.row(5, named=True)
    assert found["f1_ci_low"] < found["f1"] < found["f1_ci_high"]
    times = 4
    more = run(
        np.tile(activations[:, 5:6], (times, 1)),
        np.tile(concepts, (times, 1)),
        molecule=np.concatenate([MOLECULE + i * N_MOLECULES for i in range(times)]),
        selection=np.tile(SELECTION, times),
    ).row(0, named=True)
    ratio = (more["f1_ci_high"] - more["f1_ci_low"]) / (found["f1_ci_high"] - found["f1_ci_low"])
    assert more["f1"] == pytest.approx(found["f1"])
    assert 0.3 < ratio < 0.75  # 1 / sqrt(4), give or take the noise of 100 resamples


def test_q_is_benjamini_hochberg(planted):
    p = planted[2]["p"].to_numpy()
    order = np.argsort(p)
    q, smallest = np.empty(len(p)), 1.0
    for rank in range(len(p), 0, -1):
        smallest = min(smallest, p[order[rank - 1]] * len(p) / rank)
        q[order[rank - 1]] = smallest
    assert planted[2]["q"].to_numpy() == pytest.approx(q)


@pytest.mark.parametrize("seed", range(3))
def test_labels_shuffled_within_molecules_label_nothing(seed):
    activations, concepts = planted_input()
    rng = np.random.default_rng(seed)
    rows = np.concatenate([start + rng.permutation(LENGTH) for start in range(0, TOKENS, LENGTH)])
    table = run(activations, concepts[rows])
    assert table["label"].unique().to_list() == ["unexplained"]


def test_a_nearly_constant_concept_reaches_a_high_f1_and_no_label():
    """A dense feature agrees with a concept on 90 % of tokens by chance: the null must say so."""
    rng = np.random.default_rng(3)
    activations, concepts = random_input()
    concepts[:, 4] = rng.random(TOKENS) < 0.9
    activations[:, 0] = 1 + rng.random(TOKENS)
    row = run(activations, concepts).row(0, named=True)
    assert row["f1"] > 0.9
    assert row["null_f1"] > 0.9
    assert row["label"] == "unexplained"


def test_a_concept_shared_by_all_tokens_of_a_molecule_gives_no_label():
    activations, concepts = random_input()
    concepts[:, 4] = (MOLECULE // 2) % 2 == 0
    activations[:, 0] = concepts[:, 4]
    row = run(activations, concepts).row(0, named=True)
    assert (row["concept_index"], row["f1"], row["p"], row["label"]) == (4, 1.0, 1.0, "unexplained")


def test_p_values_of_unrelated_features_are_not_too_small():
    activations, concepts = random_input(4)
    p = run(activations, concepts)["p"].to_numpy()
    assert (p < 0.05).mean() <= 0.15
    assert 0.35 < p.mean() < 0.75


def test_a_dead_feature_is_a_row_with_a_reason(planted):
    activations, concepts = planted_input()
    activations[:, 0] = 0
    activations[SELECTION[MOLECULE], 1] = 0
    table = run(activations, concepts)
    for feature in (0, 1):
        row = table.row(feature, named=True)
        assert row.pop("feature") == feature
        assert (row.pop("label"), row.pop("reason")) == ("unexplained", "active on too few selection tokens")
        assert set(row.values()) == {None}
    assert table["label"].to_list()[2:] == planted[2]["label"].to_list()[2:]
    assert table["reason"].to_list()[2:] == [None] * (N_FEATURES - 2)


def test_a_feature_silent_on_held_out_molecules_scores_zero():
    activations, concepts = planted_input()
    activations[~SELECTION[MOLECULE], 3] = 0
    row = run(activations, concepts).row(3, named=True)
    assert (row["f1"], row["recall"], row["precision"], row["p"]) == (0, 0, None, 1)
    assert row["label"] == "unexplained"


def test_empty_and_constant_concepts_are_left_out():
    activations, concepts = planted_input()
    concepts[:, 0], concepts[:, 1] = False, True
    activations[:, 0] = 1
    table = run(activations, concepts)
    assert table["reason"].null_count() == N_FEATURES
    assert not set(table["concept_index"].to_list()) & {0, 1}
    assert table["label"].to_list()[5] == "concept 2"


def test_no_usable_concept_is_a_reason():
    activations, concepts = random_input()
    table = run(activations, np.zeros_like(concepts))
    assert table["reason"].unique().to_list() == ["no concept is frequent enough on both sides"]
    assert table["f1"].null_count() == len(table) == N_FEATURES
    assert table["label"].unique().to_list() == ["unexplained"]


def test_same_seed_same_table_and_order_of_tokens_does_not_matter(planted):
    activations, concepts, table = planted
    assert run(activations, concepts).equals(table)
    order = np.random.default_rng(5).permutation(TOKENS)
    mixed = run(activations[order], concepts[order], molecule=MOLECULE[order])
    columns = ["concept", "threshold", "f1_selection", "f1", "precision", "recall", "n_positive", "label"]
    assert mixed.select(columns).equals(table.select(columns))


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"names": NAMES[:-1]}, "disagree"),
        ({"molecule": MOLECULE[:-1]}, "disagree"),
        ({"selection": SELECTION[:-1]}, "molecule numbers"),
        ({"molecule": MOLECULE - 1}, "molecule numbers"),
        ({"selection": np.ones(N_MOLECULES, bool)}, "either side"),
    ],
)
def test_input_that_does_not_fit_is_refused(changes, wrong):
    with pytest.raises(InputError, match=wrong):
        run(*random_input(), **changes)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_activations_must_be_finite_and_not_negative(value):
    activations, concepts = random_input()
    activations[0, 0] = value
    with pytest.raises(InputError, match="negative or not finite"):
        run(activations, concepts)
