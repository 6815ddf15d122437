"""Reports of real traces: the viewer's JSON, the page, and what the warnings say."""

import json
from dataclasses import replace

import jsonschema
import pytest

import isotrace
from isotrace.attribution.trace import TraceConfig
from isotrace.verbs.tracing import Tracer

QUICK = TraceConfig(max_features=150, n_nodes=24, n_controls=20, n_spellings=3)
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
    from isotrace.report.trace.neuronpedia import graph_json

    graph = json.loads(json.dumps(graph_json(traced.traced, scan="molm", slug="x", labels={}), allow_nan=False))
    jsonschema.validate(graph, VIEWER)
    ids = [n["node_id"] for n in graph["nodes"]]
    assert len(ids) == len(set(ids)) == int(traced.traced.pruned.nodes.sum())
    assert {e[k] for e in graph["links"] for k in ("source", "target")} <= set(ids)
    assert len(graph["links"]) == int(traced.traced.pruned.edges.sum())
    (logit,) = [n for n in graph["nodes"] if n["feature_type"] == "logit"]
    assert "(p=" in logit["clerp"]
    for node in graph["nodes"]:
        if node["feature_type"] == "cross layer transcoder":
            layer, feature, position = map(int, node["node_id"].split("_"))
            assert (node["layer"], node["ctx_idx"]) == (str(layer), position)
            assert node["feature"] == (layer + feature) * (layer + feature + 1) // 2 + feature


def test_other_spellings_are_compared_atom_by_atom(traced):
    found = traced.to_dict()["spellings"]
    assert len({s["smiles"] for s in found["spellings"]}) == len(found["spellings"]) == 4
    assert len(found["units"]) == 13
    assert all(u["sd"] >= 0 for u in found["units"])
    assert any(u["sd"] > 0 for u in found["units"])


def test_spellings_keep_track_of_atoms():
    from rdkit import Chem

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
    assert tracer.trace("CC(=O)Oc1ccccc1", "mask:3", QUICK).to_dict()["spellings"] is None


def test_the_readme_example_runs(tmp_path, monkeypatch):
    from pathlib import Path

    text = (Path(isotrace.__file__).parents[2] / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.browser
def test_the_page_of_a_real_trace_works_offline(traced, open_page):
    page = open_page(traced.html())
    best = traced.features[0]
    node = f"f{best['layer']}_{best['feature']}_{best['position']}"
    page.hover(f'[data-node-id="{node}"]', force=True)
    assert page.locator(f'[data-pos="{best["position"]}"].lit').count() >= 1
    assert best["label"] in page.inner_text("#tooltip")
    page.click(f'[data-node-id="{node}"]', force=True)
    assert best["label"] in page.inner_text("#card")


def test_a_small_difference_to_divide_by_is_said(tracer):
    """Sufficiency in the hundreds means that the whole does next to nothing, not that the circuit is good."""
    result = tracer.trace("CCO", "mask:1", QUICK)
    effects = replace(result.traced.circuit_effects, full=3.66, empty=3.63, sufficiency=179.0)
    unstable = replace(result, traced=replace(result.traced, circuit_effects=effects))
    assert any("only 0.03" in text and "179 times" in text for text in unstable.warnings)
    assert not any("times that" in text for text in result.warnings)
