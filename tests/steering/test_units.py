"""Units, features and groups of neurons: what is planted is ranked first, and an edit moves nothing else."""

import numpy as np
import planted
import pytest
import torch

import tiny
from isotrace.base.errors import InputError
from isotrace.dictionaries.architectures.snmf import best_starts, dealt, nonnegative
from isotrace.dictionaries.features import Features
from isotrace.interventions import Heads, MLPs, Neurons
from isotrace.steering import FeatureEdit
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions import DIRECTIONS, Fitting
from isotrace.steering.directions.units.austeer import momentum, ranked
from isotrace.steering.directions.units.circuit_clamp import supports
from isotrace.steering.directions.units.feature_clamp import lift
from isotrace.steering.directions.units.manifold import binned, energy, left_out, spline
from isotrace.steering.directions.units.token_mass import token_mass
from isotrace.studies.worlds.planted_weights import neurons_as_features


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    subject, weights, (_, neuron) = planted.subject_of(tmp_path_factory.mktemp("planted"))
    return subject, weights, neuron, planted.contrast_of(subject)


def test_units_that_most_pairs_agree_on_come_before_decoys_of_larger_variance():
    generator = torch.Generator().manual_seed(0)
    pairs = torch.arange(80).view(40, 2)
    states = {layer: torch.randn(80, 200, generator=generator, dtype=torch.float64) for layer in (0, 1)}
    wanted = [(0, 3), (0, 77), (1, 5), (1, 100), (1, 199)]
    for layer, unit in wanted:
        states[layer][:, unit] *= 0.1
        states[layer][pairs[:, 0], unit] += 0.5 if unit % 2 else -0.5
    for layer in (0, 1):
        states[layer][:, 20:40] *= 30
        states[layer][:, 50] = 0  # silent
    found = ranked(states, pairs, 0.05)
    assert {one[:2] for one in found[:5]} == set(wanted)
    assert all(np.sign(beta) == (1 if unit % 2 else -1) for _, unit, beta in found[:5])
    assert len(found) < 12  # the rest is noise, and the test says so
    beta, p = momentum(states[0][pairs[:, 0]], states[0][pairs[:, 1]])
    assert (float(beta[50]), float(p[50])) == (0.0, 1.0)
    assert float(beta[3]) == pytest.approx(1.0)


def test_momentum_counts_equal_ones_in_n():
    positive, negative = torch.tensor([[1.0], [1.0], [0.0], [2.0]]), torch.tensor([[0.0], [0.0], [0.0], [3.0]])
    beta, p = momentum(positive, negative)
    assert float(beta) == pytest.approx(2 / 4)
    assert float(p) == pytest.approx(1.0)  # two of three that differ


@torch.no_grad()
def test_a_gain_is_at_the_chosen_units_alone_and_a_shift_needs_no_sign(world):
    subject, _, neuron, contrast = world
    gain = DIRECTIONS["austeer"].fit(subject, contrast, layers=(0,), k=2).edits[0]
    assert torch.nonzero(gain.beta[:, 0])[:, 0].tolist() == [neuron, neuron + 1]
    assert gain.beta[neuron] > 0 > gain.beta[neuron + 1]
    shift = DIRECTIONS["austeer"].fit(subject, contrast, layers=(0,), k=2, mode="shift").edits[0]
    assert shift.units == (neuron, neuron + 1)
    wide = DIRECTIONS["austeer"].fit(subject, contrast, components=MLPs(), layers=(0,), k=3, mode="shift").edits[0]
    assert int((wide.direction != 0).sum()) == 3
    with pytest.raises(InputError, match="q < 1e-09"):
        DIRECTIONS["austeer"].fit(subject, contrast, q=1e-9)


@pytest.mark.parametrize("dictionary", [False, True])
def test_the_planted_unit_is_found_lifted_and_moves_its_target_alone(world, dictionary):
    subject, _, neuron, contrast = world
    parts = Features(neurons_as_features(subject)) if dictionary else Neurons()
    fit = DIRECTIONS["feature_clamp"].fit
    edits = fit(subject, contrast, components=parts, layers=(0,), tokens="F", candidates=3)
    assert edits.edits[0].units == (neuron,)
    assert float(edits.edits[0].values[0]) == pytest.approx(20, abs=0.5)
    examples = [contrast.examples[i] for i in contrast.negative[:4]]
    lifts = {unit: lift(subject, parts, 0, unit, examples, "F") for unit in (neuron, neuron + 1, neuron + 2)}
    assert lifts[neuron] > 0
    assert abs(lifts[neuron + 2]) < 1e-3 * lifts[neuron]  # junk
    batch = subject.tokenize(["CCCCS"])
    plain = subject.run(batch).logits
    others = torch.ones(plain.shape[-1], dtype=torch.bool)
    given = {"components": parts, "layer": 0, "values": torch.ones(1) * 20}
    for unit, target in ((neuron, "F"), (neuron + 1, "O"), (neuron + 2, None)):
        plan = FeatureEdit(**given, units=(unit,), pool=(unit, 9)).plan(1.0)
        moved = (subject.run(batch, plan=plan).logits - plain)[0, 1:-1]
        rest = others.clone()
        if target is None:
            assert float(moved.abs().max()) < 1e-3  # junk
            continue
        rest[subject.token_id(target)] = False
        up = moved[:, ~rest]
        assert float(up.min()) > 1
        assert float(moved[:, rest].abs().max()) < 0.01 * float(up.min())


@torch.no_grad()
def test_a_clamp_to_what_is_there_changes_nothing_even_with_a_bad_dictionary_and_a_replacement_does(tmp_path):
    subject = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("esm-rotary"), tmp_path))
    bad, batch = tiny.random_dictionary(subject, window=1), subject.tokenize(["CCOCN"])
    parts = Features(bad)
    plain = subject.run(batch).logits
    for errors, same in (("keep", True), ("drop", False)):
        acting = Features(bad, errors=errors)
        edit = FeatureEdit(components=acting, layer=1, units=(2,), values=torch.zeros(1), mode="add", pool=(2, 3))
        assert torch.equal(subject.run(batch, plan=edit.plan(1.0)).logits, plain) == same
    # along what a feature writes: as its clamp from silence to the same value, at every layer it writes to
    crosslayer = tiny.random_dictionary(subject)
    parts = Features(crosslayer)
    assert len(parts.targets(0)) > 1


@torch.no_grad()
def test_residual_mode_adds_what_a_clamp_adds_to_a_silent_unit(world):
    subject, *_, contrast = world
    fit = DIRECTIONS["feature_clamp"].fit
    given = {"components": Features(neurons_as_features(subject)), "layers": (0,)}
    clamp, residual, replaced = (fit(subject, contrast, **given, mode=m) for m in ("clamp", "residual", "replace"))
    batch = subject.tokenize(["CCCCC"])
    logits = [subject.run(batch, plan=edits.plan(1.0)).logits[0, 3] for edits in (clamp, residual, replaced)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits[0], logits[2], rtol=1e-3, atol=1e-3)  # an exact dictionary
    with pytest.raises(InputError, match="only a dictionary can replace"):
        fit(subject, contrast, mode="replace")
    with pytest.raises(InputError, match="needs features or neurons"):
        fit(subject, contrast, components=Heads())
    with pytest.raises(InputError, match="2 groups"):
        fit(subject, Contrast.of(subject, ["CN", "CO"] * 2, ["b", "a"] * 2, groups=["g"] * 4))


def planted_groups(seed, n=400):
    """6 groups of 3 among 300 neurons: A = Z Y + noise, Y sparse."""
    rng = np.random.default_rng(seed)
    groups = np.zeros((300, 6))
    members = rng.permutation(300)[:18].reshape(6, 3)
    for k, rows in enumerate(members):
        groups[rows, k] = rng.choice([-1, 1], 3) * rng.uniform(0.7, 1.3, 3)
    loads = rng.exponential(size=(6, n)) * (rng.random((6, n)) < 0.3)
    return torch.from_numpy(groups @ loads + 0.05 * rng.normal(size=(300, n))), torch.from_numpy(groups)


def matched(found, groups):
    """Cosine of each planted group with the nearest that was found, as neurons that act together with one sign."""
    unit = [x / x.norm(dim=0).clamp(min=1e-12) for x in (found, groups)]
    return (unit[0].T @ unit[1]).amax(0)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_of_twenty_starts_finds_every_planted_group(seed):
    a, groups = planted_groups(seed)
    best = best_starts(a.T, 6, 0.01, 150, starts=dealt(20, 1, seed))[0]
    found, loss = best.factors, best.error * float(a.square().sum())
    assert float(matched(found, groups).min()) >= 0.99
    assert int((found != 0).sum(0).max()) == 3  # a hundredth of 300
    loads = nonnegative(a.T @ found, found.T @ found, 100)
    assert float((a - found @ loads.T).square().sum()) <= 1.05 * loss


def test_one_start_may_lose_a_group_and_more_groups_than_there_are_help():
    def whole(n):
        """Share of single starts that find every group."""
        found = []
        for a, groups in map(planted_groups, range(5)):
            one = (best_starts(a.T, n, 0.01, 150, starts=[[start]])[0].factors for start in range(3))
            found += [float(matched(factors, groups).min()) >= 0.99 for factors in one]
        return np.mean(found)

    assert whole(6) < 0.5
    assert whole(12) >= 0.75


def test_the_loss_falls_with_every_step_without_the_mask():
    a, _ = planted_groups(1)
    errors = [best_starts(a[:60].T, 5, 1.0, n, starts=[[0]])[0].error for n in range(1, 61)]
    assert (np.diff(errors) <= 1e-9 * errors[0]).all()
    assert len({*errors}) == 60  # the best is always the last


def read_out(angles, sharpness=1.5):
    """Overlapping read-outs of a circle: softmax of the cosine with each of `angles`."""

    def of(points):
        logits = sharpness * (points[:, :1] * np.cos(angles) + points[:, 1:2] * np.sin(angles))
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return odds / odds.sum(1, keepdims=True)

    return of


@pytest.mark.parametrize("n", [7, 12])
def test_along_a_circle_behaviour_stays_on_its_manifold_and_straight_across_it_does_not(n):
    rng = np.random.default_rng(0)
    knots = np.arange(n, dtype=float)
    angles, embed = 2 * np.pi * knots / n, np.linalg.qr(rng.normal(size=(40, 2)))[0].T
    centroids = np.stack([np.cos(angles), np.sin(angles)], 1) @ embed
    curve, of = spline(knots, centroids, period=n), read_out(angles)
    behaviour = of(curve(np.linspace(0, n, 400)) @ embed.T)
    steps = np.linspace(0, n / 2, 50)
    along = of(curve(steps) @ embed.T)
    ends = curve(steps[[0, -1]]) @ embed.T
    straight = of(ends[0] + np.linspace(0, 1, 50)[:, None] * (ends[1] - ends[0]))
    assert energy(along, behaviour) < 0.1 * energy(straight, behaviour)
    assert left_out(knots, centroids, period=n).max() < 0.8


def test_along_a_line_the_curve_is_the_line_and_noise_is_not_predicted():
    knots = np.linspace(0, 6, 7)
    line = np.outer(knots, [1.0, -2.0, 0.5]) + 3
    steps = np.linspace(0, 6, 50)
    np.testing.assert_allclose(spline(knots, line)(steps), np.outer(steps, [1.0, -2.0, 0.5]) + 3, atol=1e-9)
    # on a line nothing is gained by going along the curve
    angles = np.linspace(0, 2, 7)
    embed, of = np.eye(2, 30), read_out(angles)
    curve = spline(knots, np.stack([knots, 0 * knots], 1) @ embed)
    behaviour = of(curve(np.linspace(0, 6, 400)) @ embed.T)
    ends = curve(steps[[0, -1]]) @ embed.T
    straight = of(ends[0] + np.linspace(0, 1, 50)[:, None] * (ends[1] - ends[0]))
    along = of(curve(steps) @ embed.T)
    assert energy(along, behaviour) == pytest.approx(energy(straight, behaviour), abs=1e-9)
    noise = np.random.default_rng(0).normal(size=(12, 30))
    assert np.median(left_out(np.arange(12.0), noise)) > 0.9
    assert len(np.unique(binned(np.random.default_rng(1).normal(size=80), 8))) == 8


@torch.no_grad()
def test_a_path_edit_moves_by_its_curve_and_its_twin_as_far(world):
    subject, *_ = world
    texts = ["C" * (6 - n // 2) + "N" * (n // 2) for n in range(14)]
    contrast = Contrast.of(subject, texts, [n // 2 for n in range(14)], kind="regression")
    edits = DIRECTIONS["manifold"].fit(subject, contrast, components=MLPs(), layers=(0,))
    edit, batch = edits.edits[0], subject.tokenize(["CCCCCC"])
    twin = edits.twin(0).edits[0]
    for alpha in (0.3, 1.0):
        moved = [
            subject.run(batch, plan=one.plan(alpha), capture=["layers.0.mlp_out"]).captured["layers.0.mlp_out"][0, 2]
            - subject.run(batch, capture=["layers.0.mlp_out"]).captured["layers.0.mlp_out"][0, 2]
            for one in (edit, twin)
        ]
        torch.testing.assert_close(moved[0], edit.at(alpha)[0], rtol=1e-4, atol=1e-4)
        assert float(moved[1].norm()) == pytest.approx(float(moved[0].norm()), rel=1e-3)
    # the mean of six N less that of none
    torch.testing.assert_close(edit.at(1.0)[0], 2 * world[1]["a"], rtol=0.02, atol=0.02)
    with pytest.raises(InputError, match="7 values or more"):
        DIRECTIONS["manifold"].fit(subject, Contrast.of(subject, texts, [n // 4 + 0.5 for n in range(14)]))
    with pytest.raises(InputError, match="not words"):
        DIRECTIONS["manifold"].fit(subject, world[3])


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_circuit_is_drawn_from_what_supports_the_target(world, dictionary):
    subject, _, neuron, contrast = world
    parts = Features(neurons_as_features(subject)) if dictionary else Neurons()
    fitting = Fitting(subject, contrast, parts, (0, 1))
    support = supports(fitting, "F")
    assert float(support[0][neuron]) > 100 * float(support[0][neuron + 2].abs())  # junk
    fit = DIRECTIONS["circuit_clamp"].fit
    edits = fit(subject, contrast, components=parts, layers=(0, 1), tokens="F", size=2)
    assert {(edit.layer, unit) for edit in edits.edits for unit in edit.units} == {(0, neuron), (1, 0)}
    batch = subject.tokenize(["CCCC"])
    odds = [
        token_mass(subject, batch, subject.run(batch, plan=one.plan(1.0)).final, "F") for one in (edits, edits.twin(0))
    ]
    assert float(odds[0]) > float(odds[1]) + 0.5
    with pytest.raises(InputError, match="smaller size"):
        fit(subject, contrast, components=parts, layers=(0,), tokens="F", size=40)
