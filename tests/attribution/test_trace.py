"""A trace whose circuit, masses, signs, spellings and printed numbers are known before it is made: see `handbuilt`.

With uniform attention over the five tokens of `<cls>CNO<eos>`: SOURCE is 10 · 4 − 20 = 20 high, READER reads e of it
and o of the token O and stands at e + o − 45. READER is all that the target reads, so that its influence is 1, of which
e / (e + o) comes from SOURCE, whose own is all the token C's.
"""

import json
import re
import statistics
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import tiny
from handbuilt import DECOYS, READER, SOURCE, handbuilt
from isotrace.attribution.atoms import spelled
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.influence import influence, scores
from isotrace.attribution.trace import TraceConfig, trace
from isotrace.attribution.units import hidden_effects, unit_scores
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.interventions.components import zero_values
from isotrace.interventions.hookpoints import Neurons
from isotrace.report.page import number
from isotrace.report.trace.finding import finding
from isotrace.report.trace.record import Record

CONFIG = TraceConfig(sizes=(0.25, 0.5, 1.0), ablation="zero", n_controls=3, n_nodes=4, n_spellings=6)
MOVED = 1.4 / 5 * 4 * 2 / 5**0.5
NORMED = 4 / (1 + MOVED**2) ** 0.5
ZERO = r"(?:0|\d\.\de−\d+|0\.00\d+)"  # up to rounding
E, OWN = 12 * MOVED * NORMED, 8 * NORMED
HIGH = E + OWN - 45
S = E / (E + OWN)


@pytest.fixture(scope="module", params=[1.0, -1.0], ids=["up", "down"])
def planted(tmp_path_factory, request):
    """(sign, trace, its record)."""
    folder = tmp_path_factory.mktemp("planted") / "esm"
    subject, dictionary = handbuilt(folder, request.param)
    found = trace(subject, dictionary, "CNO", "probe:v", CONFIG)
    return request.param, found, Record(found, "handbuilt", "exact", FeatureTables(), None)


@pytest.fixture(scope="module")
def result(planted):
    return planted[2].result()


def test_the_circuit_is_what_was_written_into_the_weights(planted):
    sign, found, _ = planted
    assert sign * found.value > 0.1
    assert sorted(found.graph.feature_nodes.tolist()) == sorted([SOURCE, READER, *DECOYS])
    assert sorted(found.graph.feature_nodes[found.circuit].tolist()) == sorted([SOURCE, READER])
    assert found.choice.sizes == (1, 2, 4)


def test_the_circuit_block_in_the_unit_of_the_target(planted, result):
    """The decoys, which are every control, are nothing alone and are not missed."""
    _, found, _ = planted
    circuit, value = result.to_dict()["circuit"], found.value
    assert circuit["n_features"] == 2
    assert circuit["fraction_of_features"] == 0.5
    assert (circuit["full"], circuit["value"]) == (pytest.approx(value), pytest.approx(value))
    assert (circuit["empty"], circuit["removed"]) == (pytest.approx(0, abs=1e-5), pytest.approx(0, abs=1e-5))
    assert circuit["error"] == abs(circuit["value"] - circuit["full"]) < 1e-5
    assert (circuit["kept"], circuit["lost"]) == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-4))
    assert circuit["control"]["n"] == 3
    assert circuit["control"]["error_mean"] == pytest.approx(abs(value), abs=1e-5)
    assert circuit["control"]["removed_mean"] == pytest.approx(value, abs=1e-5)
    assert circuit["reproduces"] is True
    assert circuit["reason"] is None
    assert [s["n"] for s in circuit["sizes"]] == [1, 2, 4]
    assert [s["error"] for s in circuit["sizes"]] == pytest.approx([abs(value), 0, 0], abs=1e-5)
    # under zero ablation no sequences are needed, and the dictionary's features are the neurons
    assert circuit["neurons"] == {"n": 2, "value": pytest.approx(value), "reason": None,
                                  "error": pytest.approx(0, abs=1e-5)}  # fmt: skip
    controls = result.tables["controls"]
    assert controls["value"].to_list() == pytest.approx([0, 0, 0], abs=1e-5)
    assert controls["removed"].to_list() == pytest.approx([value] * 3, abs=1e-5)


def test_masses_and_signs(planted, result):
    _, found, _ = planted
    units = result.to_dict()["units"]
    assert [(u["index"], u["symbol"]) for u in units] == [(0, "C"), (1, "N"), (2, "O")]
    assert [u["mass"] for u in units] == pytest.approx([2 * S / (2 + S), 0, (2 - S) / (2 + S)], abs=1e-4)
    signed = [found.value * E / HIGH * 40 / 20, 0, found.value * OWN / HIGH]
    assert [u["effect"] for u in units] == pytest.approx(signed, rel=1e-3, abs=1e-4)
    # what is pictured is the mean over the spellings; branches make some of them longer
    columns = found.spellings.effects.T.tolist()
    assert [u["score"] for u in units] == pytest.approx([sum(c) / len(c) for c in columns])
    assert [u["sd"] for u in units] == pytest.approx([statistics.stdev(c) for c in columns])
    shown = {t["pos"]: t for t in result.view["page"]["tokens"]}
    assert [shown[p]["score"] for p in (1, 2, 3)] == [u["mass"] for u in units]


def test_hidden_atoms_are_measured(planted, result):
    """Each atom in turn behind the mask token, in the subject itself, the fall set beside the pictured effect."""
    _, found, _ = planted
    subject, batch = found.frame.frozen.subject, found.frame.batch
    falls = []
    for position in (1, 2, 3):
        ids = batch.ids.clone()
        ids[0, position] = subject.mask_id
        value = found.target.value(subject, batch.with_ids(ids), found.target.hidden(subject, batch.with_ids(ids)))
        falls.append(found.value - float(value.detach()))
    assert falls[0] * found.value > 0, "without C neither feature is active"
    assert [found.hidden[atom] for atom in range(3)] == pytest.approx(falls, abs=1e-6)
    assert found.spellings.hidden[0].tolist() == pytest.approx(falls, abs=1e-6)
    units, picture = result.to_dict()["units"], result.to_dict()["picture"]
    means = [sum(c) / len(c) for c in found.spellings.hidden.T.tolist()]
    assert [u["hidden"] for u in units] == pytest.approx(means)
    rank = spearmanr([u["score"] for u in units], means).statistic
    assert picture["hidden_spearman"] == pytest.approx(rank)
    assert (picture["hidden_reason"], picture["unsettled"]) == (None, None)
    assert picture["mean"] == pytest.approx(float(np.mean(found.spellings.values)))


def test_an_atom_that_the_target_masks_is_not_hidden_again(planted):
    _, found, _ = planted
    subject, batch = found.frame.frozen.subject, found.frame.batch
    masked = batch.with_ids(batch.ids.masked_fill(torch.arange(5) == 2, subject.mask_id))
    assert sorted(hidden_effects(subject, masked, found.target, found.reading.elements)) == [0, 2]


def test_atoms_of_one_token_are_hidden_together(planted):
    _, found, _ = planted
    subject, batch = found.frame.frozen.subject, found.frame.batch
    several = [(0, 3) if written == (0,) else written for written in found.reading.elements]
    falls = hidden_effects(subject, batch, found.target, several)
    assert (falls[0], falls[3]) == (pytest.approx(found.hidden[0] / 2), pytest.approx(found.hidden[0] / 2))
    apart = [(0,) if written else () for written in found.reading.elements]
    ids = batch.ids.clone()
    ids[0, 1:4] = subject.mask_id
    value = found.target.value(subject, batch, found.target.hidden(subject, batch.with_ids(ids)))
    alone = hidden_effects(subject, batch, found.target, apart)
    assert alone == {0: pytest.approx(found.value - float(value.detach()), abs=1e-6)}


def test_spellings_that_differ_by_more_than_is_explained_come_first(planted):
    _, found, record = planted
    apart = replace(found.spellings, values=found.spellings.values + 3 * abs(found.value) * np.array([1, -1] * 3)[
        : len(found.spellings.values)
    ])  # fmt: skip
    summary = replace(record, traced=replace(found, spellings=apart)).summary
    assert summary["warnings"][0] == summary["picture"]["unsettled"]
    assert "what follows explains this spelling, not the molecule" in summary["picture"]["unsettled"]


def test_a_token_of_several_atoms_shares_its_mass(planted):
    _, found, _ = planted
    elements = [(), (0, 3), (1,), (), ()]
    shared = unit_scores(found.graph, found.pruned, found.effects, elements).elements
    (mass, signed), own = shared[0], found.unit_scores.elements[0]
    assert (2 * mass, 2 * signed) == (pytest.approx(own[0]), pytest.approx(own[1]))
    assert shared[3] == shared[0]
    assert 2 not in shared, "what is no atom token gives atoms nothing"


def test_what_pushes_towards_the_prediction(planted):
    """In the running subject ablating SOURCE silences READER too, so each has half of the support; in the frozen graph
    it takes e from READER, which answers linearly, ablating READER its height."""
    _, found, record = planted
    again = trace(found.frame.frozen.subject, found.frame.dictionary, "CNO", "probe:v",
                  replace(CONFIG, node_threshold=0.8, n_spellings=0))  # fmt: skip
    named = found.graph.feature_nodes[again.supporters].tolist()
    assert sorted(named) == sorted([SOURCE, READER]), "in either order: they tie"
    listed = replace(record, traced=again).summary["supporters"]
    assert [f["graph_effect"] for f in listed] == pytest.approx(
        [found.value * (E / HIGH if node == SOURCE else 1) for node in named], rel=1e-3
    )
    live = again.live.measured[again.supporters]
    assert [f["effect"] for f in listed] == live.tolist()
    assert live.tolist() == pytest.approx([found.value] * 2, rel=1e-3)
    assert all(f["measured"] for f in listed)


def test_spellings_agree_atom_by_atom(planted, result):
    """Attention has no positions: written backwards the trace is the same, atom for atom."""
    _, found, _ = planted
    place = found.spellings.texts.index("ONC")
    np.testing.assert_allclose(found.spellings.masses[place], found.spellings.masses[0], atol=1e-5)
    np.testing.assert_allclose(found.spellings.effects[place], found.spellings.effects[0], atol=1e-5)
    assert found.spellings.masses[0].tolist() == pytest.approx([u["mass"] for u in result.to_dict()["units"]], abs=1e-5)
    np.testing.assert_allclose(found.spellings.correlations, 1)


def test_the_sentences_say_it(planted, result):
    sign, found, _ = planted
    said, more, value = finding(result.summary).sentence, " ".join(result.view["page"]["summary"]), number(found.value)
    assert said.startswith(f"probe:v reads {value} 1 (")
    assert re.search(rf"; a circuit of 2 features \(50 % of the active ones\) reproduces it, {ZERO} away, ", said)
    assert f", matched random circuits {value.removeprefix('−')}, as many neurons " in said
    assert f"all features together move it {'up' if sign > 0 else 'down'} by {value.removeprefix('−')}." in more


def cells(html):
    """Text of the cells behind every row's name in the table of key numbers."""
    table = html.split('<table class="key">')[1].split("</table>")[0]
    rows = re.findall(r"<tr><th>(.*?)</th>(.*?)</tr>", table, re.DOTALL)
    clean = lambda text: " ".join(re.sub(r"<[^>]+>", " ", text).split())  # noqa: E731
    return {clean(name).replace("&#39;", "'"): clean(rest) for name, rest in rows}


def test_every_number_of_the_table_is_the_json(result):
    circuit, shown = result.to_dict()["circuit"], cells(result.page())
    control = circuit["control"]
    expected = {
        "Features in the circuit": [circuit["n_features"]],
        "The model's value": [circuit["full"], circuit["empty"]],
        "Circuit alone": [circuit["value"], circuit["error"]],
        "Random circuits alone, distance": [control["error_mean"], *control["error_ci"], control["n"]],
        "As many neurons alone, distance": [circuit["neurons"]["error"], circuit["neurons"]["n"]],
        "Circuit removed": [circuit["removed"], control["removed_mean"], *control["removed_ci"]],
        "Shares of what all features do": [circuit["kept"], circuit["lost"]],
    }
    for name, values in expected.items():
        found = re.findall(r"−?\d[\d.,]*(?:e−?\d+)?|–", shown[name])
        assert [f.rstrip(".,") for f in found][: len(values)] == [number(v) for v in values], name


def same(shown, data, path=""):
    """Every number of `shown` that stands under the same name in `data` is the same."""
    for name, value in shown.items():
        if name in data and isinstance(value, Mapping) and isinstance(data[name], Mapping):
            yield from same(value, data[name], f"{path}.{name}")
        elif name in data:
            yield f"{path}.{name}", value, data[name]


def test_the_page_holds_the_numbers_of_the_json(result):
    text = result.page().split('<script type="application/json" id="data">')[1].split("</script>")[0]
    summary = json.loads(json.dumps(result.to_dict()))
    pairs = list(same(json.loads(text)["circuit"], summary["circuit"]))
    assert len(pairs) > 15
    assert [p[:2] for p in pairs] == [(name, data) for name, _, data in pairs]


def test_without_sequences_no_neurons_stand_beside_the_circuit(planted):
    _, found, record = planted
    subject, dictionary = found.frame.frozen.subject, found.frame.dictionary
    config = replace(CONFIG, ablation="mean", n_spellings=0)
    alone = trace(subject, dictionary, "CNO", "probe:v", config)
    assert alone.neurons is None
    block = replace(record, traced=alone).result().to_dict()["circuit"]["neurons"]
    assert (block["n"], block["value"], block["error"]) == (None, None, None)
    assert "no sequences" in block["reason"]
    beside = trace(subject, dictionary, "CNO", "probe:v", config, neuron_means=zero_values(subject, Neurons()))
    assert beside.neurons is not None


def test_completeness_counts_the_target(subject64):
    """By hand: the share of what reaches a node that is no error's, over features by influence and the target once."""
    batch, target = tiny.prepared("mask", subject64)
    graph = build_graph(frame(subject64, tiny.random_dictionary(subject64), batch, target), max_features=30)
    total = influence(graph.matrix, graph.target)
    matrix = graph.matrix.abs().double()
    weights, clean = [], []
    for node in (*range(graph.n_features), graph.target):
        row = matrix[node]
        weights.append(1.0 if node == graph.target else float(total[node]))
        clean.append(1 - float(row[graph.errors].sum() / row.sum()))
    expected = float(np.average(clean, weights=weights))
    assert scores(graph).completeness == pytest.approx(expected, rel=1e-9)
    assert expected != pytest.approx(float(np.average(clean[:-1], weights=weights[:-1])), rel=1e-3)


def test_every_spelling_is_read_once(rotary, monkeypatch):
    """The input's own too, of which the trace says by itself what hiding its atoms does."""
    seen, real = [], spelled.hidden_effects

    def hidden_effects(subject, batch, *rest):
        seen.append(tuple(batch.ids[0].tolist()))
        return real(subject, batch, *rest)

    monkeypatch.setattr(spelled, "hidden_effects", hidden_effects)
    config = TraceConfig(max_features=12, spelling_features=12, sizes=(0.5,), n_controls=2, n_nodes=2, n_spellings=4)
    found = trace(rotary, tiny.random_dictionary(rotary), "CC(=O)Nc1ccccc1", "mask:2", config)
    assert len(found.spellings.texts) > 3
    assert len(seen) == len(set(seen)) == len(found.spellings.texts)
    assert found.hidden == {a: v for a, v in enumerate(found.spellings.hidden[0]) if np.isfinite(v)}
