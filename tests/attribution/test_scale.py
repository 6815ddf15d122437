"""Long inputs stay within the memory they are given, and the page opens a graph of 10⁵ edges."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.supernodes import read_supernodes
from isotrace.attribution.trace import TraceConfig
from isotrace.base.errors import InputError
from isotrace.base.runs import open_run
from isotrace.report import render_trace
from isotrace.verbs.trace_rows import earlier_groups
from isotrace.verbs.tracing import Tracer

QUICK = TraceConfig(max_features=150, n_nodes=8, n_controls=2, n_spellings=0, circuit="effects")
MIB = 1 << 20

LONG = """
import resource, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import tiny
from isotrace.attribution.graph import build_graph, frame
from isotrace.subjects.targets import parse_target
subject = tiny.load_tiny({folder!r})
subject.tokenizer.model_max_length = subject.max_tokens = 512
batch = subject.tokenize(["C" * 510])
assert batch.ids.shape == (1, 512)
target = parse_target("mask:5", subject, batch)
framing = frame(subject, tiny.random_dictionary(subject, n_features=128, k=64), target.prepare(subject, batch), target)
build_graph(framing, max_features=1, memory={memory})  # what one batch of backward passes takes by itself
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
graph = build_graph(framing, max_features=300, memory={memory})
print(peak() - before, graph.n_features, graph.n_active, graph.matrix.numel() * 4, graph.completeness_error())
"""


@pytest.fixture(scope="module")
def long_subject(tmp_path_factory):
    model = tiny.tiny_model("esm-rotary", max_position_embeddings=600)
    return tiny.save_subject(model, tmp_path_factory.mktemp("long") / "esm")


@pytest.mark.nightly
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss counts other units elsewhere")
def test_a_long_input_stays_within_its_memory(long_subject):
    """All rows together would take 300 · 3 · 512 · 64 floats, 113 MiB. What may be taken: the rows that are kept, the
    matrix, and a batch of eight whole rows in a few copies."""
    memory = 22 * MIB
    script = LONG.format(tests=str(Path(tiny.__file__).parent), folder=str(long_subject), memory=memory)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown, n_features, n_active, matrix, error = map(float, done.stdout.split())
    rows, batch = 4 * (n_features + 1) * n_active, 4 * 8 * n_active
    assert n_features == 300
    assert error < 1e-4
    assert grown < memory + matrix + 4 * batch < rows / 1.5


@pytest.mark.parametrize("kind", ["mask", "probe"])
def test_what_is_kept_is_exact(subject64, kind):
    """With too little memory for all rows fewer features can be chosen, but no edge changes."""
    batch, target = tiny.prepared(kind, subject64)
    framing = frame(subject64, tiny.random_dictionary(subject64, n_features=60, k=12), batch, target)
    whole = build_graph(framing, max_features=10_000, batch_size=8)
    n_others = whole.n_nodes - whole.n_features - 1
    memory = 8 * (15 + n_others + 1) ** 2
    assert 16 * (n_others + whole.n_active) * 8 > memory, "the rows of all slots would not fit"
    small = build_graph(framing, max_features=15, batch_size=1, memory=memory)
    roomy = build_graph(framing, max_features=15, batch_size=1)
    assert small.n_features == roomy.n_features == 15
    assert small.completeness_error() < 1e-9
    named = {tuple(node): i for i, node in enumerate(whole.feature_nodes.tolist())}
    places = [named[tuple(node)] for node in small.feature_nodes.tolist()]
    places = torch.tensor([*places, *range(whole.n_features, whole.n_nodes)])
    torch.testing.assert_close(small.matrix, whole.matrix[places][:, places], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(small.constant, whole.constant[places], rtol=1e-9, atol=1e-12)
    with pytest.raises(InputError, match="lower max_features"):
        build_graph(framing, max_features=15, memory=memory - 1)


def test_patterns_bound_the_batch(rotary, monkeypatch):
    """The patterns of a batch fit into the memory, down to one row at a time."""
    from isotrace.attribution import graph as module

    batch, target = tiny.prepared("mask", rotary)
    framing = frame(rotary, tiny.random_dictionary(rotary), batch, target)
    seen = []
    kept = module.EdgeRows
    monkeypatch.setattr(module, "EdgeRows", lambda f, size: seen.append(size) or kept(f, size))
    one = sum(p.numel() * p.element_size() for p in framing.frozen.patterns.values())
    nodes = 1 + build_graph(framing, max_features=0).n_nodes
    assert nodes**2 * 4 > one
    for memory in (nodes**2 * 4, 64 * nodes**2 * 4):
        build_graph(framing, max_features=1, memory=memory)
    assert seen == [64, min(64, max(1, nodes**2 * 4 // one)), 64]


@pytest.fixture(scope="module")
def tracer():
    return Tracer("bundled:molm", "bundled:molm-clt")


@pytest.fixture(scope="module")
def traced(tracer):
    return tracer.trace("CC(=O)Oc1ccccc1", "probe:bbb", QUICK)


def test_groups_are_read_again_when_the_trace_is_made_again(tracer, traced, tmp_path):
    folder = tmp_path / "run"
    arguments = {"command": "isotrace trace", "seed": 0, "inputs": {}, "overwrite": False}
    with open_run(folder, **arguments) as run:
        traced.write(run)
    assert {"graph.safetensors", "supernodes.json", "network.json"} <= {f.name for f in folder.iterdir()}
    path = folder / "supernodes.json"
    text = json.loads(path.read_text())
    text["groups"][0]["name"] = "renamed by hand"
    path.write_text(json.dumps(text))
    given = earlier_groups(tracer, None, folder, "isotrace trace")
    again = tracer.trace("CC(=O)Oc1ccccc1", "probe:bbb", QUICK, supernodes=given)
    with open_run(folder, **arguments) as run:
        again.write(run)
    assert json.loads(path.read_text())["groups"] == text["groups"]
    assert "renamed by hand" in (folder / "report.html").read_text()
    (tmp_path / "given.json").write_text("[]")
    with pytest.raises(InputError, match=r"given\.json"):
        earlier_groups(tracer, tmp_path / "given.json", folder, "isotrace trace")
    for place, command in ((tmp_path / "new", "isotrace trace"), (folder, "isotrace trace of another molecule")):
        assert earlier_groups(tracer, None, place, command) is None


@pytest.fixture(scope="module")
def chromium():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    if not (path := next(filter(None, map(shutil.which, names)), None)):
        pytest.skip(f"no browser: none of {', '.join(names)} is on the path")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """Opens HTML from a file; at the end fails on any error of the page."""
    problems, pages = [], []

    def opening(html: str):
        (tmp_path / "page.html").write_text(html, encoding="utf-8")
        pages.append(page := chromium.new_page(viewport={"width": 1400, "height": 900}))
        page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.goto((tmp_path / "page.html").as_uri())
        return page

    yield opening
    for page in pages:
        page.close()
    assert not problems


@pytest.mark.browser
def test_the_page_opens_a_hundred_thousand_edges(traced, opened):
    payload, rng = traced.payload({}), random.Random(0)
    nodes = [*enumerate(payload["nodes"])]
    pairs = [(i, j) for i, a in nodes for j, b in nodes if a["layer"] < b["layer"] and b["kind"] != "error"]
    sources, targets = zip(*rng.choices(pairs, k=100_000), strict=True)
    weights = [rng.gauss(0, 1) for _ in sources]
    payload["edges"] = {"source": list(sources), "target": list(targets), "weight": weights}
    page = opened(render_trace(payload))
    page.uncheck("#collapse")
    assert page.locator("#shown").inner_text().startswith("300 of 100,000")
    assert page.locator("canvas[data-painted]").count() == 0
    page.fill("#threshold", "1000")
    page.wait_for_selector('canvas[data-painted="100000"]', timeout=60_000)
    best = max((n for n in payload["nodes"] if n["kind"] == "feature"), key=lambda n: n["influence"])
    page.click(f'[data-node-id="{best["id"]}"]', force=True)
    assert page.text_content("#card h3") == best["label"]
    page.fill("#threshold", "100")
    page.wait_for_selector("canvas:not([data-painted])", state="attached")
    assert page.locator("#shown").inner_text().startswith("1,000 of 100,000")


@pytest.mark.browser
def test_supernodes_on_the_page(tracer, traced, opened, tmp_path):
    page = opened(traced.page())
    groups = traced.view["page"]["circuit"]["supernodes"]["file"]["groups"]
    page.uncheck("#collapse")
    whole = page.locator("[data-node-id]").count()
    page.check("#collapse")
    # what is named after syntax stands in the lane of syntax
    assert page.locator(".node.supernode").count() == sum(g["name"] != "syntax" for g in groups) > 1
    assert page.locator("[data-node-id]").count() < whole
    place = next(i for i, g in enumerate(groups) if len(g["features"]) > 1 and g["name"] != "syntax")
    page.click(f'[data-node-id="s{place}"]', force=True)
    assert page.input_value(".rename") == groups[place]["name"]
    # a member on a token of no atom, whose name is none, stands in the lane of syntax too
    assert 0 < page.locator(".members li").count() <= len(groups[place]["features"])
    page.fill(".rename", "<b>mine</b>")
    assert page.text_content(f'[data-name="s{place}"]') == "<b>mine</b>"
    with page.expect_download() as download:
        page.click("#save-groups")
    assert download.value.suggested_filename == "supernodes.json"
    download.value.save_as(tmp_path / "supernodes.json")
    found = read_supernodes(tmp_path / "supernodes.json", tracer.dictionary)
    assert [[list(k) for k in g.features] for g in found.groups] == [g["features"] for g in groups]
    assert [g.name for g in found.groups] == ["<b>mine</b>" if i == place else g["name"] for i, g in enumerate(groups)]
    # a row of the table selects the supernode its feature is in, which is still selected, as one of its own, opened
    page.click("#features tbody tr:first-child button")
    assert page.locator(".node.supernode.selected").count() == 1
    name = page.input_value(".rename")
    page.uncheck("#collapse")
    assert page.locator("[data-node-id]").count() == whole
    members = next(g.features for g in found.groups if g.name == name)
    shown = page.inner_text("#card .kind")
    assert shown in [f"Feature {feature}, layer {layer}" for layer, feature in members]
