"""The planted subjects do what they were written to do, by the circuit they are said to have, and the methods that
measure find it."""

import numpy as np
import pytest
import torch
from rdkit import Chem

from isotrace.discovery.methods import METHODS, Method, Scores, method_of
from isotrace.studies import planted as module
from isotrace.studies.planted import (
    COMPONENTS,
    circuit_row,
    effects_of,
    kept,
    problem_of,
    random_precision,
    ranking,
    recovery,
    truth_of,
)
from isotrace.studies.study import Setting
from isotrace.studies.worlds.planted_subjects import SUBJECTS, planted_subjects
from isotrace.studies.worlds.planted_weights import LENGTH, Weights
from isotrace.studies.worlds.programs import PROGRAMS
from isotrace.subjects.subject import load_subject

NODES = ("head", "neuron", "feature", "mlp")


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    made = planted_subjects(tmp_path_factory.mktemp("planted"), n=16, seed=5)
    return {planted.name: planted for planted in made}


@pytest.fixture(params=SUBJECTS)
def planted(request, subjects):
    return subjects[request.param]


def found(planted, kind, name, reference="corrupt"):
    effects, _ = effects_of(method_of(name), problem_of(planted, kind, reference))
    return recovery(effects, truth_of(planted, kind).numpy(), np.random.default_rng(0))


def neurons(planted, batch):
    """(pre-activations, activations), `[batch, tokens, neurons]` per layer."""
    sites = [f"layers.{n}.{kind}" for kind in ("mlp_in", "neuron") for n in range(planted.subject.n_layers)]
    run = planted.subject.run(batch, capture=sites, logits=False)
    n = planted.subject.n_layers
    before = [planted.dictionary.preactivations(i, run.captured[sites[i]]) for i in range(n)]
    return before, [run.captured[site] for site in sites[n:]]


def test_a_saved_checkpoint_is_the_model_that_was_written(tmp_path):
    w = Weights(["token C", "token N", "seen", "answer C"])
    w.head(0, [("token N", "token C", 9.0)], [("token C", "seen", 1.0)])
    w.detectors(1, [("seen", "answer C")])
    subject = w.load(tmp_path / "saved")
    batch = subject.tokenize(["CN", "NC", "NN"])
    w.model.eval()
    with torch.no_grad():
        logits = w.model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
    assert torch.equal(subject.run(batch).logits, logits)
    again = load_subject(tmp_path / "saved")
    assert torch.equal(again.run(batch).logits, logits)
    # N attends to C wherever that is; nothing else writes the answer but <cls> and <eos>, which see a share of it
    answer = logits[..., subject.token_id("C")]
    assert float(answer[0, 2]) == pytest.approx(LENGTH, rel=0.02)
    assert float(answer[1, 1]) == pytest.approx(LENGTH, rel=0.02)
    assert float(answer[2].abs().max()) < 1e-3


@pytest.mark.parametrize("name", ["copy", "ring"])
def test_the_retrieved_token_is_predicted(subjects, name):
    planted, shift = subjects[name], {"copy": 1, "ring": -1}[name]
    answers = []
    for batch in (planted.clean, planted.corrupt):
        logits = planted.subject.run(batch).logits[:, -2]
        predicted = planted.subject.tokens(logits.argmax(-1))
        expected = [text[text.index(text[-1]) + shift] for text in batch.sequences]
        assert predicted == expected
        answers.append(expected)
    assert all(clean != corrupt for clean, corrupt in zip(*answers, strict=True))
    assert len(set(answers[0])) == {"copy": 8, "ring": 5}[name], "every neuron of the circuit is needed"


@pytest.mark.parametrize(
    ("name", "yes"), [("bracket", lambda s: s.count("(") != s.count(")")), ("motif", lambda s: "NO" in s)]
)
def test_the_readout_says_yes_to_clean_and_no_to_corrupt(subjects, name, yes):
    planted = subjects[name]
    for batch, expected in ((planted.clean, True), (planted.corrupt, False)):
        assert {yes(text) for text in batch.sequences} == {expected}
        values = planted.metric(batch, planted.subject.run(batch).final)
        assert values.tolist() == pytest.approx([LENGTH * expected] * len(values), abs=0.05)


def test_rings_are_smiles(subjects):
    for text in subjects["ring"].clean.sequences + subjects["ring"].corrupt.sequences:
        molecule = Chem.MolFromSmiles(text)
        assert molecule is not None
        assert molecule.GetRingInfo().NumRings() >= 3


def test_both_motifs_are_equally_frequent_and_their_detectors_equally_active(subjects):
    planted = subjects["motif"]
    assert {(text.count("NO"), text.count("SP")) for text in planted.clean.sequences} == {(1, 1)}
    _, active = neurons(planted, planted.clean)
    for layer in (0, 1):
        ours, other = (active[layer][..., slot] for slot in (0, 1))
        torch.testing.assert_close(ours.amax(1), other.amax(1), rtol=0.01, atol=0)
        assert (ours > 15).sum() == (other > 15).sum() > 0


def test_neurons_are_relu_so_that_the_dictionary_is_exact(planted):
    problem = problem_of(planted, "feature", "corrupt")
    for batch in (planted.clean, planted.corrupt):
        before, active = neurons(planted, batch)
        for h, a in zip(before, active, strict=True):
            torch.testing.assert_close(h.relu(), a, rtol=0, atol=1e-4)
        features = problem.components.record(planted.subject, batch)[0]
        for encoded, a in zip(features, active, strict=True):
            torch.testing.assert_close(encoded[..., 0], a, rtol=0, atol=1e-4)


def test_decoys_are_as_active_and_change_as_much(planted):
    truth = truth_of(planted, "neuron").view(planted.subject.n_layers, -1)
    (_, clean), (_, corrupt) = (neurons(planted, batch) for batch in (planted.clean, planted.corrupt))
    change = torch.stack([(a - b).abs().amax(1).mean(0) for a, b in zip(clean, corrupt, strict=True)])
    peak = torch.stack([a.amax((0, 1)) for a in clean])
    assert float(peak[~truth].max()) > 0.9 * float(peak[truth].min())
    assert int((change[~truth] > 0.5 * change[truth].min()).sum()) >= int(truth.sum())


@pytest.mark.parametrize("reference", ["corrupt", "mean"])
def test_exact_methods_find_the_whole_circuit(planted, reference):
    for kind in ("head", "neuron", "mlp") if reference == "mean" else ("head", "feature", "mlp"):
        assert found(planted, kind, "activation_patching", reference).precision == 1, kind
    assert found(planted, "edge", "path_patching", reference).precision == 1


def test_interchange_finds_the_whole_circuit(planted):
    for kind in ("head", "mlp"):
        assert found(planted, kind, "interchange") == found(planted, kind, "activation_patching")


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("attribution_patching", NODES), ("relp", NODES), ("cdt", ("head", "mlp")), ("graph_aggregate", ("feature",))],
)
def test_approximations_find_what_acts_through_values(planted, name, kinds):
    # the heads of copy are joined by a pattern of attention alone
    for kind in kinds if planted.name != "copy" else set(kinds) - {"head"}:
        result = found(planted, kind, name)
        assert (result.precision, result.last) == (1, int(truth_of(planted, kind).sum())), kind


def test_integrated_gradients_find_the_whole_circuit(planted):
    for kind in NODES:
        assert found(planted, kind, "eap_ig").precision == 1, kind
    assert found(planted, "edge", "edge_integrated_gradients").precision == 1


@pytest.mark.parametrize("name", ["bracket", "motif"])
def test_acdc_keeps_the_whole_circuit_and_nothing_else(subjects, name):
    effects, _ = effects_of(method_of("acdc"), problem_of(subjects[name], "edge", "corrupt"))
    assert ((effects.mean(0) > 0) == truth_of(subjects[name], "edge").numpy()).all()


def test_what_acts_through_keys_alone_is_nothing_to_a_fixed_pattern(subjects):
    planted = subjects["copy"]
    heads = truth_of(planted, "head").nonzero()[:, 0].tolist()
    relp, exact = (effects_of(method_of(n), problem_of(planted, "head", "corrupt"))[0].mean(0)[heads]
                   for n in ("relp", "activation_patching"))  # fmt: skip
    assert min(exact) > 0.5
    assert abs(relp[0]) < 1e-5 * relp[1]


def test_heads_write_nothing_to_the_output_themselves(subjects):
    planted = subjects["copy"]
    direct, _ = effects_of(method_of("direct_logit_attribution"), problem_of(planted, "head", "corrupt"))
    assert np.abs(direct).max() < 0.01 * float(
        planted.metric(planted.clean, planted.subject.run(planted.clean).final)[0]
    )


@pytest.mark.parametrize("kind", COMPONENTS)
def test_the_circuit_alone_is_sufficient_and_necessary(planted, kind):
    row = circuit_row(planted, kind, seed=0, n_random=1)
    for share in ("sufficiency", "necessity"):
        assert row[share] == pytest.approx(1, abs=0.01)
        assert min(row[f"{share}_ci"]) > 0.99


def test_no_node_of_the_circuit_can_be_spared(planted):
    for kind in ("head", "edge"):
        problem, truth = problem_of(planted, kind, "mean"), truth_of(planted, kind)
        full = kept(problem, torch.ones_like(truth)).mean()
        assert kept(problem, truth).mean() == pytest.approx(full, rel=0.01)
        for node in truth.nonzero()[:, 0].tolist():
            without = truth.clone()
            without[node] = False
            assert kept(problem, without).mean() < 0.8 * full


def test_equal_scores_count_against_the_method():
    truth = np.array([True, False, True, False])
    assert ranking(np.zeros(4), truth).tolist()[-2:] == [0, 2]
    assert ranking(np.array([1e-9, 0.0, 1.0, -1e-9]), truth).tolist() == [2, 1, 3, 0]
    flat = recovery(np.ones((5, 4)), truth, np.random.default_rng(0))
    assert (flat.precision, flat.last) == (0, 4)
    half = recovery(np.tile([3.0, 2.0, 1.0, -4.0], (5, 1)), truth, np.random.default_rng(0))
    assert (half.precision, half.precision_ci, half.unsigned, half.last) == (0.5, (0.5, 0.5), 0.5, 3)


def test_a_random_ranking_finds_the_share_of_true_nodes():
    truth = np.arange(40) < 10
    mean, (low, high) = random_precision(truth, seed=0)
    assert low < 0.25 < high
    assert low < mean < high


@pytest.mark.nightly
def test_the_study_has_a_row_for_every_method_and_says_who_refuses(subjects, tmp_path, monkeypatch):
    def never(_) -> Scores:
        raise AssertionError("a method that refuses is not run")

    methods = {name: METHODS[name] for name in ("attribution_patching", "edge_attribution_patching")}
    methods["shy"] = Method("shy", never, "node", True, lambda _: "it is shy")
    monkeypatch.setattr(module, "METHODS", methods)
    monkeypatch.setattr(module, "planted_subjects", lambda *_: list(subjects.values()))
    monkeypatch.setattr(module, "programs", lambda *_: [PROGRAMS["halogen"](tmp_path, 8, 0)])
    monkeypatch.setattr(module, "N_CIRCUITS", 1)
    outcome = module.planted(Setting(True, tmp_path, 0, lambda items, _: items, {}))
    rows = outcome.tables["recovery"]
    cases = {(row["subject"], row["mediator"], row["method"]) for row in rows}
    nodes = {(s, k, m) for s in SUBJECTS for k in NODES for m in ("attribution_patching", "shy")}
    assert cases == nodes | {(s, "edge", "edge_attribution_patching") for s in SUBJECTS}
    assert {(row["refused"], row["precision"]) for row in rows if row["method"] == "shy"} == {("it is shy", None)}
    assert all(len({tuple(row) for row in table}) == 1 for table in outcome.tables.values())
    assert "shy finds the whole circuit in 0 of 0 cases; refuses 16: it is shy." in outcome.notes
    assert any("copy head, corrupt: 0.50" in note for note in outcome.notes)
