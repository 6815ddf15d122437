"""The sublayer budget: planted neurons and a planted head are found among decoys, and lift more than matched units."""

import planted
import pytest
import torch

from isotrace.base.errors import InputError
from isotrace.interventions import Heads, Intervention, MLPs, Plan, Select, Set
from isotrace.interventions.hookpoints import Neurons
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions import DIRECTIONS, Fitting
from isotrace.steering.directions.units.lifts import lifts
from isotrace.steering.directions.units.sublayer_budget import (
    differences,
    head_scores,
    influences,
    neuron_scores,
    next_read,
    shared_out,
    unit,
)
from isotrace.studies.worlds.planted_weights import Weights

JUNK = 8


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """N → a (neuron 0 of layer 0), a → answer F (neuron 0 of layer 1); N anywhere → seen everywhere (head 0 of layer
    0), seen → answer F (neuron 1 of layer 1). Decoys: neurons that fire for S, ten times as strongly, and write what
    nobody reads; the last of layer 0, which always fires and writes a; heads that move C and S; neurons of layer 1 for
    S."""
    junk = [f"junk {i}" for i in range(2 * JUNK)]
    w = Weights([*(f"token {t}" for t in "CNOSF"), "a", "seen", *junk, "moved C", "moved S", "moved", "answer F"])
    w.neuron(0, {"token N": 20.0}, -20, "a")
    for write in junk[:JUNK]:
        w.neuron(0, {"token S": 200.0}, -200, write)
    w.neuron(0, {"token C": 0.0}, 300.0, "a", length=0.2)
    w.head(0, [], [("token N", "seen", 8.0)])
    for token in "CS":
        w.head(0, [], [(f"token {token}", f"moved {token}", 8.0)])
    w.head(1, [], [("token S", "moved", 8.0)])
    for read in ("a", "seen"):
        w.neuron(1, {read: 10.0}, 0.0, "answer F", length=8.0)
    for write in junk[JUNK:]:
        w.neuron(1, {"token S": 200.0}, -200, write)
    subject = w.load(tmp_path_factory.mktemp("budget"))
    return subject, planted.contrast_of(subject, n=24)


def test_places_are_dealt_in_proportion_and_within_what_there_is_room_for():
    assert shared_out({0: 3.0, 1: 1.0, 2: 0.0, 3: -2.0}, dict.fromkeys(range(4), 9), 8) == {0: 6, 1: 2}
    assert shared_out({0: 3.0, 1: 1.0}, {0: 2, 1: 9}, 8) == {0: 2, 1: 6}
    assert shared_out({0: 3.0, 1: 1.0}, {0: 2, 1: 1}, 8) == {0: 2, 1: 1}


def test_planted_units_come_first_and_decoys_of_larger_activation_do_not(world):
    subject, contrast = world
    fitting = Fitting(subject, contrast, Neurons(), (0, 1, 2))
    found = differences(subject, contrast, "grouped", "mean")
    scores = neuron_scores(subject, found, (0, 1, 2)) | head_scores(fitting, found)
    mlp, attention = scores["mlp_out", 0], scores["attn_out", 0]
    assert mlp[0] > 1.5 * mlp[1:].abs().max()
    assert scores["mlp_out", 1][:2].min() > 100 * scores["mlp_out", 1][2:].abs().max()
    assert attention[0] > 100 * attention[1:].abs().max()
    # what the positive side has, not what it has more of: the neuron that is always on writes most along v
    states = Fitting(subject, contrast, Neurons(), (0,)).states()[0][contrast.positive].mean(0)
    assert int((states * (subject.neuron_writes(0)[0].double() @ unit(found.at["resid_post", 0]))).argmax()) == JUNK + 1
    assert float(states[1]) > float(states[0])  # a decoy fires more strongly than what is planted

    influence = influences(fitting, found, 16)
    planted_ones = {("attn_out", 0), ("mlp_out", 0), ("mlp_out", 1)}
    assert min(influence[key] for key in planted_ones) > 0.9
    assert all(abs(influence[key]) < 0.02 for key in {*influence} - planted_ones)
    assert [influence[kind, 2] for kind in ("attn_out", "mlp_out")] == [0.0, 0.0]  # nothing is written there


@pytest.mark.parametrize("tokens", [None, "F"])
def test_planted_units_lift_and_matched_ones_and_decoys_that_were_chosen_do_not(world, tokens):
    subject, contrast = world
    chosen, held = contrast.split()
    edits = DIRECTIONS["sublayer_budget"].fit(subject, chosen, neurons=4, heads=1)
    found = lifts(subject, edits, chosen, held, tokens=tokens)
    units = {(one.kind, one.layer, one.unit): one for one in found.units}
    expected = {("head", 0, 0), ("neuron", 0, 0), ("neuron", 1, 1)}
    assert expected < {*units}
    decoys = {*units} - expected - {("neuron", 1, 0)}
    # the influence of layer 0 gives it places that only decoys can fill
    assert len(decoys) == 1 if ("neuron", 1, 0) in units else 2
    for key in expected:
        strangers = [x for x in units[key].random if x < 0.9 * units[key].lift]
        assert len(strangers) >= len(units[key].random) - 1  # the other planted neuron of layer 1 is as good
        assert units[key].lift > 20 * max(map(abs, strangers))
        assert units[key].above == pytest.approx(units[key].lift - sum(units[key].random) / len(units[key].random))
    assert units["neuron", 0, 0].p == pytest.approx(1 / (1 + len(units["neuron", 0, 0].random)))
    for key in decoys:
        assert abs(units[key].lift) < 0.01 * units["neuron", 0, 0].lift
    assert found.whole > max(one.lift for one in found.units)
    assert found.whole > 2 * max(map(abs, found.twins))  # one of which holds that planted neuron
    assert found.rows()[0].keys() == {"kind", "layer", "unit", "lift", "above", "p"}


def test_what_it_does_not_take(world):
    subject, contrast = world
    fit = DIRECTIONS["sublayer_budget"].fit
    with pytest.raises(InputError, match="leave out the components"):
        fit(subject, contrast, components=MLPs())
    alone = Contrast.of(subject, ["CN", "CO"] * 2, ["b", "a"] * 2, groups=["g1", "g2"] * 2)
    with pytest.raises(InputError, match="no group holds both sides"):
        fit(subject, alone)
    with pytest.raises(InputError, match="do not differ behind the last block"):
        fit(subject, Contrast.of(subject, ["CNO", "CNO"] * 2, ["b", "a"] * 2, groups=["g"] * 4))
    chosen, held = contrast.split()
    means = DIRECTIONS["difference_in_means"].fit(subject, chosen, layers=(0,))
    for given, said in (((chosen, held), "neurons and heads"), ((held, chosen), "other seq"), ((chosen,) * 2, "also")):
        with pytest.raises(InputError, match=said):
            lifts(subject, means, *given)


@pytest.mark.every_family
def test_it_runs_on_every_family(subject):
    """Where attention and MLP of a block read one norm, heads are seen by the next block's MLP."""
    texts, labels = ["CCN", "CCO", "NCCN", "OCCO", "CN", "CO"], ["b", "a"] * 3
    contrast = Contrast.of(subject, texts, labels, groups=["g"] * 6)
    edits = DIRECTIONS["sublayer_budget"].fit(subject, contrast, neurons=2, heads=1)
    edits.check(subject)
    batch = subject.tokenize(texts)
    plain, *edited = (subject.run(batch, plan=plan).final for plan in (None, edits.plan(1.0), edits.twin(0).plan(1.0)))
    assert not any(torch.equal(plain, one) for one in edited)
    layer = subject.n_layers - 1
    parallel = subject.family.model_type == "progen"
    assert next_read(subject, 0) == ("mlp_in", int(parallel))
    assert next_read(subject, layer) == (("resid_post", layer) if parallel else ("mlp_in", layer))
    plan = Plan.of(Intervention(Heads(), Set(0.0), Select((0,), (0,))))
    name = "layers.{1}.{0}".format(*next_read(subject, 0))
    read = [subject.run(batch, plan=one, capture=[name]).captured[name] for one in (None, plan)]
    assert not torch.equal(*read)
