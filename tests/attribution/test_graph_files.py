"""A graph comes back as it was saved, and every kind of damage is one line that says what to do."""

import json
import struct

import pytest
import torch
from safetensors.torch import load, save

import tiny
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.graph_files import KEY, load_graph, origin_of, save_graph
from isotrace.attribution.influence import influence, prune, scores, total_effects
from isotrace.base.errors import InputError, RunError


@pytest.fixture
def made(subject):
    batch, target = tiny.prepared("mask", subject)
    dictionary = tiny.random_dictionary(subject)
    graph = build_graph(frame(subject, dictionary, batch, target), max_features=15)
    tokens = tuple(subject.tokens(batch.ids[0]))
    origin = origin_of(subject, "random", dictionary, tiny.SMILES, tokens, target, 1.25)
    return graph, prune(graph, 0.8, 0.9), origin, dictionary


@pytest.fixture
def one(rotary, tmp_path):
    """(path, dictionary, subject) of one saved graph."""
    batch, target = tiny.prepared("mask", rotary)
    dictionary = tiny.random_dictionary(rotary)
    graph = build_graph(frame(rotary, dictionary, batch, target), max_features=15)
    origin = origin_of(rotary, "random", dictionary, tiny.SMILES, tuple(rotary.tokens(batch.ids[0])), target, 1.25)
    save_graph(tmp_path / "graph.safetensors", graph, prune(graph, 0.8, 0.9), origin)
    return tmp_path / "graph.safetensors", dictionary, rotary


@pytest.mark.every_family
def test_a_graph_comes_back(subject, made, tmp_path):
    graph, pruned, origin, dictionary = made
    save_graph(tmp_path / "g", graph, pruned, origin)
    found = load_graph(tmp_path / "g", subject=subject, dictionary=dictionary)
    assert (found.origin, found.edges) == (origin, "all")
    for name in ("feature_nodes", "activations", "matrix", "preactivation", "constant", "unselected"):
        assert torch.equal(getattr(found.graph, name), getattr(graph, name)), name
    for name in ("nodes", "edges", "influence"):
        assert torch.equal(getattr(found.pruned, name), getattr(pruned, name)), name
    for name in ("n_layers", "n_tokens", "embeddings", "n_active", "target", "tokens", "errors"):
        assert getattr(found.graph, name) == getattr(graph, name)
    assert torch.equal(total_effects(found.graph), total_effects(graph))
    assert scores(found.graph) == scores(graph)


def test_only_the_kept_edges(made, tmp_path):
    """A smaller file, whose rows still add up."""
    graph, pruned, origin, _ = made
    save_graph(tmp_path / "all", graph, pruned, origin)
    save_graph(tmp_path / "kept", graph, pruned, origin, "kept")
    assert (tmp_path / "kept").stat().st_size < (tmp_path / "all").stat().st_size
    found = load_graph(tmp_path / "kept")
    assert found.edges == "kept"
    assert 0 < int(pruned.edges.sum()) < int((graph.matrix != 0).sum())
    assert torch.equal(found.graph.matrix, torch.where(pruned.edges, graph.matrix, 0))
    assert torch.equal(found.pruned.edges, pruned.edges)
    rows = [*range(graph.n_features), graph.target]
    totals = [g.matrix.double().sum(1)[rows] + g.unselected[rows] for g in (graph, found.graph)]
    assert float((graph.unselected - found.graph.unselected).abs().max()) > 1e-3, "something was left out"
    torch.testing.assert_close(*totals, rtol=1e-6, atol=1e-6)
    assert float(influence(found.graph.matrix, graph.target).sum()) > 0


def rewritten(path, change_header=None, change_tensors=None, digest=False):
    """The file with its header or tensors changed; with `digest`, its checksum made to fit again."""
    from isotrace.attribution.graph_files import _digest

    content = path.read_bytes()
    tensors = load(content)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][KEY])
    if change_tensors:
        change_tensors(tensors)
    if digest:
        header["tensors_sha256"] = _digest(tensors)
    if change_header:
        change_header(header)
    path.write_bytes(save(tensors, {KEY: json.dumps(header)}))


def refused(path, error, match, **given):
    with pytest.raises(error, match=match) as caught:
        load_graph(path, **given)
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value), "it says what to do"


def test_what_is_no_graph(tmp_path):
    refused(tmp_path / "nowhere", InputError, "cannot be read")
    (tmp_path / "text").write_text("hello")
    refused(tmp_path / "text", RunError, "truncated or no graph file")
    (tmp_path / "other").write_bytes(save({"x": torch.zeros(2)}))
    refused(tmp_path / "other", InputError, "but no graph")
    (tmp_path / "foreign").write_bytes(save({"x": torch.zeros(2)}, {KEY: '{"format": "something"}'}))
    refused(tmp_path / "foreign", InputError, "no graph of isotrace")
    (tmp_path / "mangled").write_bytes(save({"x": torch.zeros(2)}, {KEY: "{"}))
    refused(tmp_path / "mangled", RunError, "no JSON")


@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_truncated(one, share):
    path, *_ = one
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, RunError, "truncated")


def test_one_flipped_bit(one):
    path, *_ = one
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    refused(path, RunError, "damaged")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda h: h.update(colour="red"), RunError, "colour"),
        (lambda h: h["origin"].update(colour="red"), RunError, "colour"),
        (lambda h: h.pop("n_layers"), RunError, "n_layers"),
        (lambda h: h.update(format_version=3), InputError, "format 3, not 2"),
        (lambda h: h.update(n_nodes=7), RunError, "damaged"),
        (lambda h: h.update(n_tokens=2), RunError, "do not fit"),
        (lambda h: h["origin"].update(tokens=["C"]), RunError, "1 tokens"),
        (lambda h: h.update(tensors_sha256="0" * 64), RunError, "checksum"),
    ],
)
def test_headers(one, change, error, match):
    path, *_ = one
    rewritten(path, change_header=change)
    refused(path, error, match)


def set_edge(target, source):
    def change(tensors):
        tensors["edges"][0, 0], tensors["edges"][1, 0] = target, source

    return change


def poke(name, value):
    def change(tensors):
        tensors[name].view(-1)[0] = value

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (poke("weights", float("nan")), "weights hold NaN"),
        (poke("activations", float("inf")), "activations hold NaN or infinity"),
        (set_edge(10_000, 0), "a node it does not have"),
        (set_edge(0, -1), "a node it does not have"),
        (set_edge(3, 3), "circle"),
        (set_edge(0, 14), "circle"),
        (poke("feature_nodes", 99), "outside its layers"),
        (lambda t: t.pop("influence"), "influence is missing"),
        (lambda t: t.update(more=torch.zeros(1)), "more is unknown"),
        (lambda t: t.update(constant=torch.zeros(3)), "constant is"),
        (lambda t: t["kept_nodes"].zero_(), "pruned"),
    ],
)
def test_tensors(one, change, match):
    """The checksum fits, as in a file that someone wrote with care and got wrong."""
    path, *_ = one
    rewritten(path, change_tensors=change, digest=True)
    refused(path, RunError, match)


def test_a_graph_of_something_else(one, folders):
    path, dictionary, subject = one
    load_graph(path, subject=subject, dictionary=dictionary)
    refused(path, InputError, "not of", subject=tiny.load_tiny(folders["bert"]))
    refused(path, InputError, "weights differ", dictionary=tiny.random_dictionary(subject, seed=1))


def test_nan_is_not_saved(made, tmp_path):
    graph, pruned, origin, _ = made
    graph.matrix[graph.target, 0] = float("nan")
    with pytest.raises(RunError, match="NaN"):
        save_graph(tmp_path / "g", graph, pruned, origin)
    assert not (tmp_path / "g").exists()
    graph.matrix[graph.target, 0] = 1
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write"):
        save_graph(tmp_path / "file" / "inside", graph, pruned, origin)
