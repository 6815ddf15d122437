"""Reports of real traces: the viewer's JSON, the page, and what the warnings say."""

import io
import json
import pickle
from dataclasses import replace
from html import unescape
from types import SimpleNamespace

import jsonschema
import numpy as np
import polars as pl
import pytest
import torch
from rdkit import Chem

import isotrace
from isotrace.attribution.graph_files import load_graph
from isotrace.attribution.trace import TraceConfig
from isotrace.base.errors import InputError, RunError
from isotrace.base.result import Result
from isotrace.base.runs import read_manifest
from isotrace.dictionaries.features import Features
from isotrace.domains.molecule import parse, token_map
from isotrace.interventions import Intervention, Nodes, Plan, To
from isotrace.report.page import number
from isotrace.report.trace.finding import finding
from isotrace.report.trace.graph.kinds import KINDS
from isotrace.report.trace.graph.neuronpedia import linked
from isotrace.report.trace.index import Traces, claims, page_row
from isotrace.report.trace.trace import TraceResult
from isotrace.subjects.targets import parse_target
from isotrace.verbs.tracing import Tracer

QUICK = TraceConfig(max_features=150, spelling_features=60, n_nodes=24, n_controls=20, n_spellings=3)
EFFECTS = replace(QUICK, circuit="effects")  # where it is not about circuits
TEXT, NUMBER = {"type": "string"}, {"type": "number"}
NODE = {
    "type": "object",
    "required": ["node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"],
    "properties": {
        "node_id": TEXT,
        "feature": {"type": ["integer", "null"]},
        "layer": {"type": ["string", "integer"]},
        "ctx_idx": {"type": "integer"},
        "feature_type": {"enum": ["cross layer transcoder", "mlp reconstruction error", "embedding", "logit"]},
        "jsNodeId": TEXT,
        "clerp": TEXT,
        "influence": {"type": ["number", "null"]},
        "activation": {"type": ["number", "null"]},
    },
}
VIEWER = {
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": {
            "type": "object",
            "required": ["slug", "scan", "prompt_tokens", "prompt"],
            "properties": {
                "slug": TEXT,
                "scan": TEXT,
                "prompt": TEXT,
                "prompt_tokens": {"type": "array", "items": TEXT},
            },
        },
        "qParams": {"type": "object"},
        "nodes": {"type": "array", "items": NODE},
        "links": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["source", "target", "weight"],
                "properties": {"source": TEXT, "target": TEXT, "weight": NUMBER},
            },
        },
    },
}


@pytest.fixture(scope="module")
def tracer():
    return Tracer("bundled:molm", "bundled:molm-clt")


@pytest.fixture(scope="module", params=["probe:bbb", "mask:7"])
def traced(tracer, request):
    return tracer.trace("CC(=O)Oc1ccccc1C(=O)O", request.param, QUICK, name="aspirin")


def test_graph_json_is_what_viewers_read(traced):
    graph = json.loads(json.dumps(linked(traced.view["viewer"]), allow_nan=False))
    jsonschema.validate(graph, VIEWER)
    ids, shape = [n["node_id"] for n in graph["nodes"]], traced.to_dict()["graph"]
    assert len(ids) == len(set(ids)) == shape["n_nodes"]
    assert {e[k] for e in graph["links"] for k in ("source", "target")} <= set(ids)
    assert len(graph["links"]) == shape["n_edges"]
    (logit,) = [n for n in graph["nodes"] if n["feature_type"] == "logit"]
    assert "(p=" in logit["clerp"]
    for node in graph["nodes"]:
        if node["feature_type"] == "cross layer transcoder":
            layer, feature, position = map(int, node["node_id"].split("_"))
            assert (node["layer"], node["ctx_idx"]) == (str(layer), position)
            assert node["feature"] == (layer + feature) * (layer + feature + 1) // 2 + feature


def test_the_finding_says_what_the_json_says(traced):
    summary = traced.to_dict()
    target, circuit, seen, groups = (summary[name] for name in ("target", "circuit", "picture", "groups"))
    found = finding(summary)
    assert sorted(a for g in groups for a in g["elements"]) == list(range(13))
    assert found.prediction.startswith(f"{target['name']} reads {number(target['value'])} {target['unit']}")
    assert f"{number(seen['mean'])} ± {number(seen['sd'])} over 4 spellings" in found.prediction
    assert number(circuit["empty"]) in found.reference
    assert number(circuit["error"]) in found.circuit
    assert number(circuit["control"]["error_mean"]) in found.circuit
    assert ("no small circuit" in found.circuit) == (not circuit["reproduces"])
    moving = [g for g in groups if g["hidden"] is not None and abs(g["hidden"]) > g["sd"]]
    assert {g["name"] for g in (*found.raises, *found.lowers)} == {g["name"] for g in moving}
    for group in groups:
        assert (group["name"] in found.groups) == (group in moving)
    assert ("an untrained copy" in found.taken_back) == (target["knows"] is False)
    assert ("explains this spelling" in found.taken_back) == (seen["sd"] > abs(circuit["full"] - circuit["empty"]))
    assert found.sentence in unescape(traced.page())
    assert "alone" not in found.groups
    unspelled = summary | {"groups": [g | {"sd": None, "beyond": True} for g in groups if g["hidden"] is not None]}
    assert "in this spelling alone" in finding(unspelled).groups


@pytest.mark.parametrize("traced", ["probe:bbb"], indirect=True)
def test_groups_are_hidden_in_every_spelling(traced, tracer):
    """The mean over the spellings of what hiding the group's tokens does, each computed anew."""
    found = traced.to_dict()
    acid = next(g for g in found["groups"] if g["name"] == "carboxylic acid")
    falls, mol = [], Chem.MolFromSmiles(found["input"])
    for one in found["spellings"]["spellings"]:
        batch = tracer.subject.tokenize([one["text"]])
        goal = parse_target("probe:bbb", tracer.subject, batch)
        units = token_map(one["text"], tracer.subject.tokens(batch.ids[0]), batch.offsets[0])
        other = parse(one["text"])
        (match,) = other.GetSubstructMatches(Chem.MolFromSmarts("C(=O)[OH]"))
        hidden = batch.ids.clone()
        for position, unit in enumerate(units):
            if unit.kind == "atom" and unit.atoms[0] in match:
                hidden[0, position] = tracer.subject.mask_id
        read = [
            float(goal.value(tracer.subject, b, goal.hidden(tracer.subject, b)))
            for b in (batch, replace(batch, ids=hidden))
        ]
        falls.append(read[0] - read[1])
    assert mol.GetSubstructMatch(Chem.MolFromSmarts("C(=O)[OH]")) == tuple(acid["elements"])
    assert acid["hidden"] == pytest.approx(np.mean(falls), abs=1e-4)
    assert acid["sd"] == pytest.approx(np.std(falls, ddof=1), abs=1e-4)


def test_what_the_page_offers_to_take_along(traced, tmp_path):
    found, folder = traced.to_dict(), traced.save(tmp_path / "run")
    share = traced.payload(read_manifest(folder))["share"]
    copies = {c["name"]: c["text"] for c in share["copies"]}
    assert copies["SMILES"] == found["input"]
    said = finding(found)
    assert copies["sentence"] == f"{said.sentence} {said.taken_back}".rstrip()
    assert copies["command"].startswith("TraceResult.save")
    atoms = pl.read_csv(io.StringIO(copies["atoms (TSV)"]), separator="\t")
    assert atoms["score"].to_list() == pytest.approx([u["score"] for u in found["units"]])
    groups = pl.read_csv(io.StringIO(copies["groups (TSV)"]), separator="\t", infer_schema_length=None)
    assert groups["name"].to_list() == [g["name"] for g in found["groups"]]
    features = pl.read_csv(io.StringIO(copies["circuit features (TSV)"]), separator="\t", infer_schema_length=None)
    assert features["effect"].to_list() == pytest.approx([f["effect"] for f in found["features"]])
    assert share["cards"] == ["card.svg", "card.png"]
    assert (folder / "card.svg").read_text() == traced.card_svg() == Result.load(folder).card_svg()
    assert traced.payload()["share"]["cards"] == []


def test_lanes_add_up(traced):
    """What a lane says is the sum over its members, here and in the graph of the page; nothing is in two."""
    summary, page = traced.to_dict(), traced.view["page"]
    lanes, features = summary["lanes"], summary["features"]
    total = sum(abs(f["effect"]) for f in features)
    for kind in KINDS:
        own = [f for f in features if f["kind"] == kind]
        assert lanes[kind]["n"] == len(own)
        assert lanes[kind]["sum"] == pytest.approx(sum(f["effect"] for f in own))
        assert lanes[kind]["share"] == pytest.approx(sum(abs(f["effect"]) for f in own) / total)
    assert sum(lanes[kind]["share"] for kind in KINDS) == pytest.approx(1)
    assert lanes["tokens"]["sum"] == pytest.approx(sum(s["effect"] for s in summary["syntax"]))
    assert lanes["tokens"]["mass"] == pytest.approx(sum(s["score"] for s in summary["syntax"]))
    graph, nodes = page["circuit"]["supernodes"], page["nodes"]
    folded = [i for part in (*graph["members"], *(f["members"] for f in graph["folds"])) for i in part]
    rest = {i for i, n in enumerate(nodes) if n["kind"] in ("error", "target")}
    assert sorted([*folded, *rest]) == list(range(len(nodes)))
    (syntax,) = [f for f in graph["folds"] if f["kind"] == "syntax"]
    assert {i for i, n in enumerate(nodes) if n["about"] == "syntax"} == set(syntax["members"])
    assert sum(nodes[i]["effect"] for i in syntax["members"]) == pytest.approx(lanes["syntax"]["sum"])
    atoms = {f["label"]: f["members"] for f in graph["folds"] if f["kind"] == "token"}
    own = {g["name"]: set(g["elements"]) for g in summary["groups"]}
    for label, members in atoms.items():
        units = [page["tokens"][nodes[i]["pos"]] for i in members]
        assert {bool(u["writes"]) for u in units} == {label != "tokens of no atom"}
        assert {a for u in units for a in u["writes"]} <= own.get(label, set())


def test_removing_a_lane_is_measured(traced, tracer):
    """All features of a kind at their mean at once, by an intervention of its own."""
    summary = traced.to_dict()
    batch = tracer.subject.tokenize([summary["input"]])
    goal = parse_target(summary["target"]["name"], tracer.subject, batch)
    batch = goal.prepare(tracer.subject, batch)
    for kind in ("named", "syntax"):
        own = [(f["layer"], f["position"], f["feature"]) for f in summary["features"] if f["kind"] == kind]
        means = tuple(m[:, None] for m in tracer.dictionary.mean_activation)
        plan = Plan((Intervention(Features(tracer.dictionary), To(means), Nodes.of(torch.tensor(own))),))
        with tracer.subject.edited(plan):
            value = float(goal.value(tracer.subject, batch, goal.hidden(tracer.subject, batch)))
        assert summary["lanes"][kind]["removed"] == pytest.approx(summary["target"]["value"] - value, abs=1e-3)


def test_other_spellings_are_compared_atom_by_atom(traced):
    found = traced.to_dict()["spellings"]
    assert len({s["text"] for s in found["spellings"]}) == len(found["spellings"]) == 4
    assert len(found["units"]) == 13
    assert all(u["sd"] >= 0 for u in found["units"])
    assert any(u["sd"] > 0 for u in found["units"])


def test_substructures_are_hidden_in_the_running_subject(traced, tracer):
    """Aspirin: the ester, the ring and the acid; an atom behind the mask is none."""
    found, subject = traced.to_dict(), tracer.subject
    masked = set() if found["target"]["kind"] == "probe" else {3}  # token 7, the ester's oxygen
    of = {p["name"]: p for p in found["substructures"]}
    assert set(of["ester"]["elements"]) == {1, 2, 3} - masked
    assert set(of["benzene ring"]["elements"]) == set(range(4, 10))
    batch = subject.tokenize([found["input"]])
    goal = parse_target(found["target"]["name"], subject, batch)
    batch = goal.prepare(subject, batch)
    tokens = traced.view["page"]["tokens"]
    for name in ("ester", "benzene ring"):
        at = [t["pos"] for t in tokens if t["writes"] and t["writes"][0] in of[name]["elements"]]
        ids = batch.ids.clone()
        ids[0, at] = subject.mask_id
        values = [float(goal.value(subject, b, goal.hidden(subject, b))) for b in (batch, batch.with_ids(ids))]
        assert of[name]["effect"] == pytest.approx(values[0] - values[1], abs=1e-4)
    assert np.isfinite(of["benzene ring"]["random"])


def test_spellings_keep_track_of_atoms():
    from isotrace.domains.molecule import parse
    from isotrace.domains.molecule.spelling import spellings

    mol = parse("C[C@H](N)C(=O)OC1CC1[N+](=O)[O-]")
    found = spellings(mol, 12, seed=3)
    assert len({s.smiles for s in found}) == len(found) > 5
    for spelling in found:
        other = parse(spelling.smiles)
        assert Chem.MolToSmiles(other) == Chem.MolToSmiles(mol)
        assert sorted(spelling.original) == list(range(mol.GetNumAtoms()))
        for bond in other.GetBonds():
            ends = spelling.original[bond.GetBeginAtomIdx()], spelling.original[bond.GetEndAtomIdx()]
            assert mol.GetBondBetweenAtoms(*ends).GetBondType() == bond.GetBondType()


def test_a_masked_syntax_token_has_no_other_spelling(tracer):
    assert tracer.trace("CC(=O)Oc1ccccc1", "mask:3", EFFECTS).to_dict()["spellings"] is None


def test_the_readme_example_runs(tmp_path, monkeypatch):
    from pathlib import Path

    text = (Path(isotrace.__file__).parents[2] / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.browser
def test_the_page_of_a_real_trace_works_offline(traced, open_page):
    page = open_page(traced.page())
    page.uncheck("#collapse")
    best = traced.to_dict()["features"][0]
    node = f"f{best['layer']}_{best['feature']}_{best['position']}"
    page.hover(f'[data-node-id="{node}"]', force=True)
    assert page.locator(f'[data-pos="{best["position"]}"].lit').count() >= 1
    assert best["label"] in page.inner_text("#tooltip")
    page.click(f'[data-node-id="{node}"]', force=True)
    assert best["label"] in page.inner_text("#card")


def test_a_result_is_small_data_that_is_saved_and_read_again(traced, tmp_path):
    other = pickle.loads(pickle.dumps(traced))
    assert len(pickle.dumps(traced)) < 5e6
    assert other == traced
    assert hash(other) == hash(traced)
    traced.save(tmp_path / "run")
    read = Result.load(tmp_path / "run")
    assert isinstance(read, TraceResult)
    assert read == traced
    assert read.to_frame().equals(traced.to_frame())
    assert read.to_frame().height == traced.to_dict()["circuit"]["n_features"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert read.page(read_manifest(tmp_path / "run")) == page
    graph = load_graph(tmp_path / "run" / "graph.safetensors")
    assert int(graph.pruned.nodes.sum()) == traced.to_dict()["graph"]["n_nodes"]
    assert read.to_dict()["target"]["value"] == graph.origin.value
    with pytest.raises(RunError, match="no run folder"):
        Result.load(tmp_path)


def test_a_molecule_keeps_its_atoms(tracer):
    """Aspirin, its atoms dealt anew: what is said of atom i is said of `GetAtomWithIdx(i)`, and is what the SMILES
    says of the same atom."""
    mol = Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O")
    order = np.random.default_rng(3).permutation(13).tolist()
    config = replace(EFFECTS, max_features=60, spelling_features=20, n_nodes=4, n_controls=2)
    found = tracer.trace(Chem.RenumberAtoms(mol, order), "probe:bbb", config)
    units = found.units
    assert [u["index"] for u in units] == list(range(13))
    assert [u["symbol"] for u in units] == [mol.GetAtomWithIdx(order[i]).GetSymbol() for i in range(13)]
    text = found.to_dict()["input"]
    written = Chem.MolFromSmiles(text)
    assert text == Chem.MolToSmiles(mol), "how its atoms are numbered does not change what is traced"
    same = tracer.trace(text, "probe:bbb", config).units
    match = written.GetSubstructMatch(Chem.RenumberAtoms(mol, order))  # unique: aspirin has no symmetry
    assert match != tuple(range(13))
    for name in ("effect", "mass"):  # of the text itself: which other spellings are drawn follows the numbering
        assert [units[i][name] for i in range(13)] == [same[match[i]][name] for i in range(13)]
    spelled = found.to_dict()["spellings"]["units"]
    assert [s["index"] for s in spelled] == list(range(13))
    tokens = found.view["page"]["tokens"]
    assert all(units[a]["symbol"] == t["text"].strip("[]H@+-").capitalize() for t in tokens for a in t["writes"])


def test_hydrogens_that_smiles_drop_are_refused(tracer):
    with pytest.raises(InputError, match="RemoveHs"):
        tracer.trace(Chem.AddHs(Chem.MolFromSmiles("CCO")), "probe:bbb", QUICK)


def planted(text, target, error=0.1, empty=2.0, neurons: float | None = 0.2, reason=None, acid: float = 1.0):
    """What a trace says, every number another."""
    control = {"error_mean": 3.0, "removed_mean": 4.0, "error_ci": [2.5, 3.5], "spread": 0.7, "n": 8}
    circuit = {"n_features": 9, "full": 1.0, "empty": 1.0 + empty, "value": 1.0 - error, "error": error, "removed": 6.0}
    circuit |= {"control": control, "neurons": {"n": 9, "value": 5.0, "error": neurons}}
    circuit |= {"reproduces": reason is None, "reason": reason}
    graph, about = {"replacement_score": 0.6, "completeness_score": 0.8}, {"unit": "1", "description": f"of {target}"}
    return {"input": text, "name": None, "domain": "molecule", "element": "atom",
            "target": {"name": target, "value": 1.5} | about, "circuit": circuit, "graph": graph,
            "warnings": ["one", "two"],
            "substructures": [{"name": "acid", "elements": [0, 1], "effect": acid, "random": 0.5}]}  # fmt: skip


def test_the_index_claims_what_holds_by_distance():
    said = [planted("C", "t", neurons=near) for near in (0.2, 0.3, 0.05)]
    said.append(planted("C", "t", 5.0, neurons=None, reason="chance"))
    rows = [page_row(one, "x.html") for one in said]
    assert rows[0] == {"href": "x.html", "target": "t", "value": 1.5, "description": "of t", "n_features": 9,
                       "error": 0.1, "empty_error": 2.0, "control_error": 3.0, "neuron_error": 0.2, "reason": None,
                       "warnings": 2}  # fmt: skip
    reproduced, neurons = claims(rows)
    assert reproduced.startswith("In 3 of 4 a circuit reproduces")
    assert neurons == "In 2 of 3 it comes nearer to the model than as many neurons."


def test_the_index_has_a_card_for_every_molecule_and_a_row_for_every_trace():
    def result(summary):
        drawn = (f"<svg>{summary['input']}</svg>", "Orange raises it.")
        return SimpleNamespace(summary=summary, to_dict=lambda: dict(summary), drawn=lambda: drawn)

    found = [(4, result(planted("CO", "t"))), (4, result(planted("CO", "u", 0.3))), (7, result(planted("CN", "t")))]
    source = {"subject": "s", "dictionary": "d", "fidelity": None}
    made = Traces.of("Two", source, found, ["a", None, "b"], pl.DataFrame())  # pyright: ignore[reportArgumentType]
    shown = [(e["text"], e["svg"], [(p["target"], p["href"]) for p in e["pages"]]) for e in made.view["entries"]]
    assert shown == [("CO", "<svg>CO</svg>", [("t", "../a/report.html"), ("u", None)]),
                     ("CN", "<svg>CN</svg>", [("t", "../b/report.html")])]  # fmt: skip
    assert made.page().count("t: Orange raises it.") == 2  # which of its targets the drawing is of
    assert [t["index"] for t in made.summary["traces"]] == [4, 4, 7]
    assert made.to_frame().to_dicts()[1] == {
        "index": 4, "input": "CO", "name": None, "value": 1.5, "n_features": 9, "full": 1.0, "empty": 3.0, "error": 0.3,
        "removed": 6.0, "reproduces": True, "reason": None, "circuit_value": 0.7, "control_error": 3.0,
        "neuron_error": 0.2, "replacement_score": 0.6, "warnings": 2,
    }  # fmt: skip
    assert "3 predictions of 2 molecules" in made.page()


def test_many_traces_tell_what_substructures_do(tmp_path):
    def result(summary):
        return SimpleNamespace(summary=summary, to_dict=lambda: dict(summary), drawn=lambda: ("<svg></svg>", ""))

    effects = (0.75, 1.0, 1.25, 1.5, 3.0)
    found = [(i, result(planted("CO", "t", acid=effect))) for i, effect in enumerate(effects)]
    found.append((9, result(planted("CO", "u"))))
    source = {"subject": "s", "dictionary": "d", "fidelity": None}
    made = Traces.of("Many", source, found, [None] * 6, pl.DataFrame())  # pyright: ignore[reportArgumentType]
    many, one = made.summary["over_molecules"]
    (row,) = many["rows"]
    assert (many["target"], many["molecules"], row["molecules"]) == ("t", 5, 5)
    assert row["effect"] == pytest.approx(1.5)
    assert row["beyond"] == pytest.approx(1.0)
    assert 0.25 <= row["beyond_ci"][0] < 1 < row["beyond_ci"][1] <= 2.5
    assert one["rows"][0]["beyond_ci"] is None
    page = made.page()
    assert "Substructures over 5 molecules: t" in page
    assert "Too few molecules for a table of substructures (it takes 5 with one target): u." in page
    made.save(tmp_path / "run")
    read = isotrace.load(tmp_path / "run")
    assert read == made
    assert read.tables["substructures"].to_dicts()[4] == {
        "index": 4, "target": "t", "substructure": "acid", "elements": "0 1", "effect": 3.0, "random": 0.5
    }  # fmt: skip
    told = pl.read_csv(tmp_path / "run" / "substructures.csv").to_dicts()
    assert [(r["target"], r["molecules"], r["beyond_low"] is None) for r in told] == [("t", 5, False), ("u", 1, True)]


def test_results_are_equal_by_all_that_they_hold(tmp_path):
    source = {"subject": "s", "dictionary": "d", "fidelity": None}
    one = Traces.of("None", source, [], [], pl.DataFrame({"index": [0], "input": ["C?"], "reason": ["no SMILES"]}))
    assert one == Traces(one.summary, one.view, one.tables)
    assert one != Traces(one.summary, one.view | {"title": "Other"}, one.tables)
    assert one != Traces(one.summary | {"subject": "other"}, one.view, one.tables)
    assert one != TraceResult(one.summary, one.view, one.tables)
    one.save(tmp_path / "run")
    assert Traces.load(tmp_path / "run") == one
    with pytest.raises(RunError, match="of the kind traces, not TraceResult"):
        TraceResult.load(tmp_path / "run")
