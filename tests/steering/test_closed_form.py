"""Directions in closed form on planted data."""

import numpy as np
import planted
import pytest
import torch
from sklearn.decomposition import PCA

from isotrace.base.errors import InputError
from isotrace.interventions import MLPs, Neurons, Residuals
from isotrace.probing.states import pooled_states
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions.closed_form.control_vector import main_direction
from isotrace.steering.directions.closed_form.difference_in_means import group_weights
from isotrace.steering.directions.closed_form.probe import readout
from isotrace.steering.directions.closed_form.regime_delta import stretched
from isotrace.steering.directions.direction import DIRECTIONS, Fitting
from isotrace.subjects.probe import pool


def cosine(a, b):
    a, b = a.flatten().double(), b.flatten().double()
    return float(a @ b / a.norm() / b.norm())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    subject, weights, neuron = planted.subject_of(tmp_path_factory.mktemp("planted"))
    return subject, weights, neuron, planted.contrast_of(subject)


@pytest.mark.parametrize("form", ["plain", "paired", "grouped"])
def test_the_difference_in_means_is_what_half_of_the_inputs_write(world, form):
    subject, weights, _, contrast = world
    wanted = weights["a"] - weights["other"]
    edits = DIRECTIONS["difference_in_means"].fit(subject, contrast, components=MLPs(), layers=(0,), form=form)
    assert cosine(edits.edits[0].direction, wanted) >= 0.99
    twins = [cosine(edits.twin(seed).edits[0].direction, wanted) for seed in range(20)]
    assert np.median(np.abs(twins)) <= 0.2
    assert edits.method == "difference_in_means"
    assert edits.data == contrast.sha256
    assert edits.confounds["token N"] > 0.9
    assert abs(edits.confounds["length"]) < 0.5


def test_groups_count_alike_and_none_overwrites_another():
    """Categories × groups with group offsets far larger than the effect, unequal numbers, and a group of one side."""
    rng = np.random.default_rng(0)
    effect, state, codes, groups = np.array([1.0, 0.0, 0.0]), [], [], []
    for group, (n_positive, n_negative) in enumerate(((5, 1), (1, 6), (3, 3), (4, 0))):
        offset = 50 * rng.normal(size=3)
        for code, n in ((1.0, n_positive), (-1.0, n_negative)):
            state += [offset + (code > 0) * effect] * n
            codes += [code] * n
            groups += [f"scaffold {group} / warm"] * n
    weights = group_weights(np.asarray(codes), np.asarray(groups, dtype=object), 1.0)
    np.testing.assert_allclose(2 * weights @ np.asarray(state), effect, atol=1e-9)
    # three categories, every group holding all: the category's mean less that of all three
    codes, groups = np.tile([0.0, 1.0, 2.0], 4), np.repeat([*"wxyz"], 3)
    state = rng.normal(size=(12, 3))
    found = group_weights(codes, groups, 2.0) @ state
    np.testing.assert_allclose(found, state[2::3].mean(0) - state.mean(0), atol=1e-12)
    with pytest.raises(InputError, match="no group holds both"):
        group_weights(np.asarray([1.0, -1.0]), np.asarray(["a", "b"]), 1.0)


def test_a_confounded_label_gives_its_confound_until_it_is_held(world):
    """S is in the positive sequences only; its junk is most of the difference, and N is found once S is held."""
    subject, weights, *_ = world
    rng, texts, labels = np.random.default_rng(1), [], []
    for i in range(40):
        positive, others = i % 2, "S" * int(rng.integers(1, 3) + i % 2) + "N" * int(rng.integers(0, 2) + i % 2)
        texts.append("".join(rng.permutation([*others.ljust(6, "C")])))
        labels.append(positive)
    contrast = Contrast.of(subject, texts, labels)
    found = {
        held: DIRECTIONS["difference_in_means"].fit(
            subject, contrast.residual("token S") if held else contrast, components=MLPs(), layers=(0,)
        )
        for held in (False, True)
    }
    cosines = [cosine(found[held].edits[0].direction, weights["a"]) for held in (False, True)]
    assert cosines[0] < 0.7
    assert cosines[1] > 0.99
    assert found[False].confounds["token S"] > 0.9
    assert found[True].settings["held"] == ["token S"]


def test_centred_components_lose_the_mean_that_uncentred_ones_find():
    rng = np.random.default_rng(0)
    wanted = np.eye(24)[3]
    noise = rng.normal(size=(300, 24))
    noise[:, 3] *= 0.05  # little variance along what all pairs share
    differences = 2 * wanted + noise
    assert main_direction(torch.from_numpy(differences))[3] > 0.98
    assert main_direction(torch.from_numpy(-differences))[3] < -0.98
    assert abs(PCA(1).fit(differences).components_[0, 3]) < 0.2


@pytest.mark.parametrize("form", ["svd", "mean_difference", "mean_of_positives"])
def test_control_vectors_of_pairs_find_what_is_planted(world, form):
    subject, weights, _, contrast = world
    edits = DIRECTIONS["control_vector"].fit(subject, contrast, components=MLPs(), layers=(0,), form=form)
    wanted = weights["a"] if form == "mean_of_positives" else weights["a"] - weights["other"]
    assert cosine(edits.edits[0].direction, wanted) > (0.8 if form == "mean_of_positives" else 0.95)
    assert [e.layer for e in DIRECTIONS["control_vector"].fit(subject, contrast).edits] == [1, 2]
    apart = Contrast.of(subject, ["CCN", "CCO"], ["b", "a"], groups=["x", "y"])
    with pytest.raises(InputError, match="2 pairs"):
        DIRECTIONS["control_vector"].fit(subject, apart)


@torch.no_grad()
def test_a_full_delta_moves_the_planted_position_alone_and_a_pooled_one_all(world):
    subject, *_ = world
    chains = ["CSCCC", "SCCCS", "CCCCC", "CCCSS"]
    texts, labels = [f"{c[:2]}{x}{c[2:]}" for c in chains for x in "NC"], ["b", "a"] * 4
    contrast, batch = Contrast.of(subject, texts, labels), subject.tokenize(["CCNCCC"])
    changed = {}
    for mode in ("full", "padded", "interpolated", "pooled"):
        edits = DIRECTIONS["regime_delta"].fit(subject, contrast, components=MLPs(), layers=(0,), mode=mode)
        states = [subject.run(batch, plan=edits.plan(a), capture=["layers.0.mlp_out"]).captured for a in (0, 0.5)]
        moved = (states[1]["layers.0.mlp_out"] - states[0]["layers.0.mlp_out"])[0].norm(dim=-1)
        changed[mode] = torch.nonzero(moved > 1e-5)[:, 0].tolist()
    assert changed["full"] == changed["padded"] == changed["interpolated"] == [3]
    assert changed["pooled"] == [3]  # in shares of the state's own norm, which is 0 elsewhere in this layer
    # in the residual stream every token has a norm, so that every one could move
    given = {"components": Residuals(), "layers": (0,)}
    moved = {}
    for name, settings in (("full", {"standardise": False}), ("standardised", {}), ("pooled", {"mode": "pooled"})):
        edits = DIRECTIONS["regime_delta"].fit(subject, contrast, **given, **settings)
        states = [subject.run(batch, plan=edits.plan(a), capture=["layers.0.resid_post"]).captured for a in (0, 0.5)]
        moved[name] = (states[1]["layers.0.resid_post"] - states[0]["layers.0.resid_post"])[0].norm(dim=-1)
    assert torch.nonzero(moved["full"] > 1e-5)[:, 0].tolist() == [3]
    assert torch.nonzero(moved["pooled"] > 1e-5)[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    # a tensor whose mean and variance changed at one position is changed at all, though far less
    shares = moved["standardised"] / moved["standardised"].max()
    assert int(shares.argmax()) == 3
    assert 0 < float(shares[[1, 2, 4, 5, 6]].max()) < 0.5
    with pytest.raises(InputError, match="no positions in common"):
        DIRECTIONS["regime_delta"].fit(subject, Contrast.of(subject, [*texts, "CCCCCCN"], [*labels, "b"]))


def test_stretching_is_linear_and_keeps_the_ends():
    line = torch.arange(5.0)[:, None].double() * torch.tensor([[1.0, -2.0]]).double()
    torch.testing.assert_close(stretched(line, 9), torch.arange(0, 4.5, 0.5)[:, None] * line[1])


def test_a_probe_finds_the_planted_neurons(world):
    subject, _, (_, at), contrast = world
    found = DIRECTIONS["probe"].fit(subject, contrast, components=Neurons(), layers=(0,)).edits[0].direction.flatten()
    assert found.topk(1).indices.tolist() == [at]  # N
    assert (-found).topk(1).indices.tolist() == [at + 1]  # O
    assert cosine(found, torch.eye(len(found))[at] - torch.eye(len(found))[at + 1]) > 0.95
    with pytest.raises(InputError, match="no setting"):
        DIRECTIONS["probe"].fit(subject, contrast, colour=1)


@torch.no_grad()
def test_gradients_are_finite_differences_of_the_probe(world):
    subject, _, (_, at), contrast = world
    parts = Neurons()
    found = DIRECTIONS["gradient"].fit(subject, contrast, components=parts, layers=(0,), strength=1.0).edits[0]
    fitting, batch = Fitting(subject, contrast, parts, (0,)), subject.tokenize([e.text for e in contrast.examples])
    states = pooled_states(subject, contrast.examples, (subject.n_layers,), "mean")
    weight = readout(fitting, states, 1.0, 5).float()

    def value(unit, step):
        def move(layer, values):
            return values + step * (torch.arange(values.shape[2]) == unit)[:, None] if layer == 0 else values

        with parts.edited(subject, move):
            return float((pool(subject, batch, subject.hidden(batch.ids, batch.mask)) @ weight).sum())

    slopes = torch.tensor([(value(unit, 0.1) - value(unit, -0.1)) / 0.2 for unit in range(at, at + 5)])
    torch.testing.assert_close(found.direction[at : at + 5, 0], slopes / slopes.norm(), rtol=0.02, atol=0.02)
    assert found.direction[at] > 0 > found.direction[at + 1]
