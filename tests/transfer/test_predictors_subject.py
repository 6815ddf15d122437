"""Every predictor on a tiny subject: a number or a reason, the same at every call; and gradients of tasks."""

import math

import numpy as np
import pytest
import torch
from adapting_table import MOLECULES

from isotrace.base.errors import InputError
from isotrace.probing.linear import Task
from isotrace.transfer.adapting.method import n_weights
from isotrace.transfer.judging.matrix import Matrix
from isotrace.transfer.predictors import PREDICTORS, Evidence, Row, alike, score_all, scored
from isotrace.transfer.predictors.features import BASES
from isotrace.transfer.predictors.gradients.distance import distances, near_elsewhere
from isotrace.transfer.predictors.gradients.gradient import distance, sketch, task_gradient
from isotrace.transfer.predictors.probes import forest

NITROGENS = np.asarray([text.count("N") for text in MOLECULES], float)
SLOW = (("probe_best_layer", "classification"), ("tangent_alignment", "classification"))
GROUPS = [str(i % 12) for i in range(len(MOLECULES))]


def of(subject, y, kind: Task = "regression", **given) -> Evidence:
    found = Evidence.of(subject, MOLECULES, y, kind, **{"seed": 0, "groups": GROUPS} | given)
    return alike([found])[0]


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(forest, "TREES", 10)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[pytest.mark.nightly] if (name, kind) in SLOW else [])
        for name in PREDICTORS
        if not name.endswith(BASES)  # those are walked with features, in test_predictor_features
        for kind in ("regression", "classification")
    ],
)
def test_every_predictor_gives_a_number_or_a_reason_and_the_same_again(rotary, few, name, kind):
    y = NITROGENS + 0.01 * np.arange(len(MOLECULES)) if kind == "regression" else (NITROGENS > 1).astype(float)
    known = of(rotary, y, kind, tokens_seen=1e6, corpus=tuple(MOLECULES[:20]))
    predictor = PREDICTORS[name]
    row = predictor.row(known)
    assert not row.reason
    assert math.isfinite(row.score)
    if kind == "regression":
        assert predictor.score(of(rotary, y, kind, tokens_seen=1e6, corpus=tuple(MOLECULES[:20]))) == row.score
    assert row.direction == predictor.direction
    assert row.passes == len(y) * (predictor.passes + predictor.sampled[0])  # fewer than are sampled at most
    assert predictor.about
    assert row.seconds > 0


def test_what_has_no_subject_says_so():
    f = np.random.default_rng(0).standard_normal((40, 6))
    planted = Evidence(f, (), f[:, 0], "regression", np.arange(40).astype(str))
    rows = score_all(planted)
    assert [row.predictor for row in rows] == [*PREDICTORS]
    assert all(math.isfinite(row.score) != bool(row.reason) for row in rows)
    assert {row.predictor for row in rows if not row.reason} == {
        "probe", "knn", "logme", "h_score", "h_score_shrunk", "nleep", "rogi_xd", "kernel_alignment"
    }  # fmt: skip
    with pytest.raises(InputError, match="no predictor"):
        score_all(planted, ["nothing"])


def test_too_few_groups_are_a_reason():
    f = np.random.default_rng(0).standard_normal((40, 6))
    row = PREDICTORS["probe"].row(Evidence(f, (), f[:, 0], "regression", np.asarray(["a", "b"] * 20)))
    assert math.isnan(row.score)
    assert "2 groups" in row.reason


def test_plain_ones_by_hand(rotary):
    known = of(rotary, NITROGENS, tokens_seen=math.e)
    assert PREDICTORS["ln_params"].score(known) == math.log(n_weights(rotary.model))
    assert PREDICTORS["ln_tokens"].score(known) == 1
    tokens = [len(rotary.tokenize([text]).ids[0]) - 2 for text in MOLECULES]  # a begin and an end each
    assert PREDICTORS["fertility"].score(known) == sum(tokens) / sum(map(len, MOLECULES))


def test_flops_are_those_of_the_passes(rotary):
    row = PREDICTORS["gradient_snr"].row(of(rotary, NITROGENS))
    tokens = sum(len(rotary.tokenize([text]).ids[0]) for text in MOLECULES)
    assert row.flops == pytest.approx(4 * 2 * n_weights(rotary.model) * tokens)
    assert PREDICTORS["fertility"].row(of(rotary, NITROGENS)).flops == 0


def test_rows_become_what_is_judged():
    nothing = np.zeros((2, 2))
    matrix = Matrix(("a", "b"), ("f", "g"), ("s", "t"), ("s", "t"), nothing, nothing, nothing, nothing)
    rows = {
        ("a", "t"): [Row("up", 2.0, 1, 0.5, 3, 30, ""), Row("down", 2.0, -1, 0.25, 0, 0, "")],
        ("b", "s"): [Row("up", math.nan, 1, 0.1, 3, 30, "why")],
    }
    found = scored(rows, matrix)
    assert np.array_equal(found["up"].scores, [[math.nan, 2], [math.nan, math.nan]], equal_nan=True)
    assert found["down"].scores[0, 1] == -2
    assert (found["up"].seconds[0, 1], found["up"].flops[1, 0]) == (0.5, 30)
    with pytest.raises(InputError, match="no place"):
        scored({("c", "t"): rows["a", "t"]}, matrix)


def test_a_sketch_keeps_lengths_and_angles():
    """To about 1/√4,096."""
    one, other = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(0))
    other = 0.6 * one + 0.8 * other
    sketched = sketch(len(one), 4_096, 0)
    a, b = sketched(one), sketched(other)
    assert np.linalg.norm(a) == pytest.approx(float(one.norm()), rel=0.05)
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) == pytest.approx(0.6, abs=0.05)


def test_embeddings_are_the_last_of_the_layers(rotary):
    known = of(rotary, NITROGENS)
    assert len(known.layers) == rotary.n_layers + 1
    assert all(layer.shape == (len(MOLECULES), rotary.d_model) for layer in known.layers)
    assert np.array_equal(known.embeddings, known.layers[-1])


def test_gradients_of_tasks_that_share_a_factor_are_near(rotary):
    rng = np.random.default_rng(0)
    n = len(MOLECULES)
    tasks = [NITROGENS + 0.3 * rng.standard_normal(n), 2 * NITROGENS + 0.6 * rng.standard_normal(n)]
    tasks += [rng.standard_normal(n), (NITROGENS > 1).astype(float)]
    kinds: tuple[Task, ...] = ("regression", "regression", "regression", "classification")
    found = [task_gradient(of(rotary, y, kind)) for y, kind in zip(tasks, kinds, strict=True)]
    d = distances(found)
    assert np.array_equal(np.diag(d), np.zeros(4))
    assert np.allclose(d, d.T)
    assert ((d >= 0) & (d <= 2)).all()
    assert d[0, 1] < 0.5 * min(d[0, 2], d[1, 2])


def test_gradients_of_two_checkpoints_do_not_compare(rotary, causals):
    one, other = (task_gradient(of(subject, NITROGENS)) for subject in (rotary, causals["gpt2"]))
    with pytest.raises(InputError, match="two checkpoints"):
        distance(one, other)


def test_outcomes_of_near_tasks_weigh_more_and_the_own_group_is_left_out():
    y = np.asarray([[0.0, 1, 5, 9], [2, 0, 5, 1]])
    nothing = np.zeros_like(y)
    matrix = Matrix(
        ("a", "b"), ("f", "g"), ("s", "u", "t/1", "t/2"), ("s", "u", "t", "t"), y, nothing, nothing, nothing
    )
    between = np.zeros((2, 4, 4))
    between[:, 1, 2] = between[:, 1, 3] = 2  # u is opposite to t: what is known of it says nothing
    found = near_elsewhere(matrix, between)(y)
    unit = np.sqrt(0.5)  # z of two checkpoints
    assert found[:, 2] == pytest.approx([-unit / 2, unit / 2])
    hidden = y.copy()
    hidden[0] = np.nan
    assert np.isnan(near_elsewhere(matrix, between)(hidden)[0]).all()
    with pytest.raises(InputError, match="distances"):
        near_elsewhere(matrix, between[:1])
