"""A pair from end to end: what stands beside the circuit, where the difference sits, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

import tiny
from handbuilt import READER, SOURCE, handbuilt
from isotrace.attribution.pairs.measures import LANES, Swapped
from isotrace.attribution.pairs.pair import PairConfig, at_partner, chosen, pair
from isotrace.base.errors import InputError, SubjectError
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.domains.alignment import Alignment
from isotrace.interventions.components import zero_values
from isotrace.interventions.hookpoints import Neurons
from isotrace.report.pair.record import PairRecord
from isotrace.subjects.subject import load_subject
from isotrace.subjects.targets import Target

A, B = "CC(=O)Nc1ccccc1", "CC(=O)Oc1ccccc1"
CONFIG = PairConfig(sizes=(0.05, 0.2), n_nodes=12, n_controls=5, n_spellings=3)


@pytest.fixture(scope="module")
def world(relu_subject):
    return relu_subject, tiny.random_dictionary(relu_subject)


@pytest.fixture(scope="module")
def found(world):
    subject, dictionary = world
    means = zero_values(subject, Neurons())
    return pair(subject, dictionary, A, B, "mask:5", CONFIG, neuron_means=means)


def test_what_stands_beside_the_circuit(found):
    swapped, swaps = found.swapped, found.swaps
    assert found.sizes == tuple(round(share * len(swaps.candidates)) for share in CONFIG.sizes)
    assert len(found.circuit) in found.sizes
    assert (swapped.own, swapped.other) == (found.a.value, found.b.value)
    again = swaps.values([found.circuit, *(found.ranking[:n] for n in found.sizes)])
    assert again == pytest.approx([swapped.value, *found.values], abs=1e-5)
    assert len(swapped.controls) == CONFIG.n_controls
    layers = np.bincount(found.circuit[:, 0], minlength=3)
    assert layers.sum() == len(found.circuit)
    # MLP outputs and embeddings of B, on every token: B itself
    assert None not in found.alignment.partner
    assert found.beyond.embeddings == pytest.approx(found.b.value, abs=1e-4)
    assert len(found.neurons) == len(found.sizes)


def test_one_by_one(found):
    estimates = found.swaps.estimates(found.ranking).numpy()
    assert (np.diff(np.abs(estimates)) <= 0).all()
    (moved,) = found.a.value - found.swaps.values([found.ranking[3][None]])
    assert found.measured[3] == pytest.approx(moved, abs=1e-5)
    assert np.corrcoef(found.measured, estimates[: len(found.measured)])[0, 1] > 0.8


def test_where_the_difference_sits(found):
    changed, common, syntax, special = found.lanes[0]
    assert tuple(lane.name for lane in found.lanes[0]) == LANES
    assert changed.tokens == (7,), "the nitrogen"
    assert sum(lane.nodes for lane in found.lanes[0]) == len(found.swaps.candidates)
    assert changed.moved == pytest.approx(found.effects[0][7], abs=1e-5), "one token is its lane"
    assert len(changed.controls) == CONFIG.n_controls
    assert not len(common.controls) + len(syntax.controls) + len(special.controls)
    assert len(found.effects[1]) == len(found.b.tokens)


def test_both_are_masked_where_they_are_aligned(world):
    subject, dictionary = world
    found = pair(subject, dictionary, "CCCC(=O)N", "NCCCC(=O)N", "mask:3", CONFIG)
    assert (found.a.target.position, found.b.target.position) == (3, 4)
    assert (found.a.tokens[3], found.b.tokens[4]) == ("<mask>", "<mask>")
    assert found.a.target.positive == found.b.target.positive
    assert found.lanes[0][0].nodes == 0, "all that A has is in B"
    assert found.lanes[1][0].tokens == (1,)
    assert found.neurons is not None, "every token of A has a partner: no mean is needed"
    turned = pair(subject, dictionary, "NCCCC(=O)N", "CCCC(=O)N", "mask:4", CONFIG)
    assert turned.neurons is None
    assert np.isnan(turned.beyond.outputs)


def test_a_target_that_reads_one_token_reads_its_partner():
    alignment = Alignment((0, 2, None), (frozenset(), frozenset()), 3)
    target = Target("probe", "probe:x:1", "", "1", place=1)
    assert at_partner(target, alignment).place == 2
    with pytest.raises(InputError, match="position 2 of the first has no aligned token"):
        at_partner(replace(target, place=2), alignment)
    whole = replace(target, place=None)
    assert at_partner(whole, alignment) is whole


def test_neurons_choose_their_own_size(found):
    circuit = PairRecord(found, "tiny", "random", FeatureTables()).circuit
    errors = np.abs(found.neurons - found.b.value)
    place = chosen(errors, CONFIG.tolerance * abs(found.a.value - found.b.value))
    assert circuit["neurons"]["chosen"]["n"] == found.sizes[place]
    assert circuit["neurons"]["chosen"]["error"] == pytest.approx(errors[place])
    assert circuit["neurons"]["error"] == pytest.approx(errors[found.sizes.index(len(found.circuit))])


def test_the_same_seed_gives_the_same_pair(world, found):
    again = pair(*world, A, B, "mask:5", CONFIG, neuron_means=zero_values(world[0], Neurons()))
    assert again.swapped.controls.tolist() == found.swapped.controls.tolist()
    assert again.circuit.tolist() == found.circuit.tolist()


def test_a_known_difference_is_found(tmp_path):
    """The first token of CNOO wakes SOURCE, that of NNOO does not; all that the probe reads of it passes READER."""
    subject, dictionary = handbuilt(tmp_path / "esm")
    found = pair(subject, dictionary, "CNOO", "NNOO", "probe:v", replace(CONFIG, ablation="zero", sizes=(0.01,)))
    assert found.swaps.candidates.tolist() != []
    assert found.circuit.tolist() in ([SOURCE], [READER])


def test_how_a_size_is_chosen():
    assert chosen(np.asarray([0.5, 0.05, 0.3, 0.04, 0.06]), 0.1) == 3, "the second does not last"
    assert chosen(np.asarray([0.5, 0.2, 0.3]), 0.1) == 1, "none is near enough: the nearest"
    assert chosen(np.asarray([0.05, 0.05]), 0.1) == 0


@pytest.mark.parametrize(
    ("value", "controls", "reason"),
    [
        (0.1, [1.0, 0.9, 0.8], None),
        (1.0, [1.0, 0.9, 0.8], "no nearer to the other one than swapping nothing"),
        (-1.2, [1.0, 0.9, 0.8], "no nearer to the other one than swapping nothing"),
        (0.85, [1.0, 0.1, 0.8], "than 95% of matched random swaps"),
    ],
)
def test_whether_a_swap_carries_the_difference(value, controls, reason):
    found = Swapped(1.0, 0.0, 0.2, value, 0.8, np.asarray(controls), 1e-6).reason
    assert found is None if reason is None else reason in found


def test_two_alike_in_value():
    assert Swapped(1.0, 1.0, 1.0, 1.0, 1.0, np.ones(3), 1e-6).reason == "both have the same value"


@pytest.mark.parametrize(
    ("a", "b", "target", "reason"),
    [
        (A, "CN", "mask:5", "share 0 connected atoms"),
        (A, A, "mask:5", "the same molecule"),
        (A, "OC(C)=Nc1ccccc1", "mask:4", "position 4 of the first has no aligned token"),
        (A, "C?C", "mask:5", "C?C"),
        (A, B, "mask:99", "out of range"),
        (A, B, "mask:7", "what mask:7 hides is all that differs"),
    ],
)
def test_what_is_refused(world, a, b, target, reason):
    with pytest.raises(InputError) as raised:
        pair(*world, a, b, target, CONFIG)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_subject_without_a_domain_is_refused(relu_subject, world, monkeypatch):
    monkeypatch.setattr(relu_subject, "files", replace(relu_subject.files, domain=None))
    with pytest.raises(SubjectError, match="--domain"):
        pair(*world, A, B, "mask:5", CONFIG)


def test_two_proteins(folders):
    """Letters that are residues as well as atoms."""
    subject = load_subject(folders["bert"], domain="protein")
    found = pair(subject, tiny.random_dictionary(subject), "CCNOSC", "CCNOCC", "mask:3:C", CONFIG)
    assert found.alignment.changed == ({4}, {4})
    assert found.lanes[0][0].tokens == (5,)
    assert found.spellings is None
    result = PairRecord(found, "tiny", "random", FeatureTables()).result()
    assert "On the changed residues of the first" in result.page()
    assert result.page().count('class="track"') == 2
