"""The report pages: nothing leaves the file, nothing breaks out of it, and it answers to the pointer."""

import json
import random
import re
import time
from html.parser import HTMLParser

import pytest
from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.domains.molecule.drawing import draw_molecule, draw_small
from isotrace.domains.molecule.smiles import lex
from isotrace.report import render_index, render_trace
from isotrace.report.card.carded import shared
from isotrace.report.page import interval, number, percent

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


def trace_payload(smiles: str = ASPIRIN, n_layers: int = 6, n_features: int = 60, n_edges: int = 500) -> dict:
    """Random numbers (seeded) on a real molecule: enough to lay out and to exercise a page, nothing to learn from."""
    rng = random.Random(7)
    lexemes = lex(smiles)
    mass = [rng.random() ** 3 for _ in lexemes]
    tokens = [
        {
            "pos": p + 1,
            "text": x.text,
            "kind": x.kind,
            "about": list(x.atoms),
            "writes": list(x.atoms) if x.kind == "atom" else [],
            "score": m / sum(mass),
        }
        | {"signed": rng.uniform(-1, 1) * m, "hidden": rng.gauss(0, m), "masked": p == len(lexemes) - 1}
        for p, (x, m) in enumerate(zip(lexemes, mass, strict=True))
    ]
    edge_token = {
        "kind": "special",
        "about": [],
        "writes": [],
        "score": 0.0,
        "signed": 0.0,
        "hidden": None,
        "masked": False,
    }
    tokens = [
        {"pos": 0, "text": "<cls>"} | edge_token,
        *tokens,
        {"pos": len(tokens) + 1, "text": "<eos>"} | edge_token,
    ]
    atoms = [t for t in tokens if t["kind"] == "atom"]
    goal = atoms[-1]["pos"]

    def node(id: str, kind: str, layer: int, pos: int | None, label: str, feature: int | None = None) -> dict:
        influence = 1.0 if kind == "target" else rng.random() ** 4
        effect = rng.gauss(0, influence) if kind == "feature" else None
        return {"id": id, "kind": kind, "layer": layer, "pos": pos, "feature": feature, "label": label} | {
            "activation": rng.uniform(0.1, 5) if kind == "feature" else None,
            "influence": influence,
            "effect": effect,
            "f1": rng.random() if kind == "feature" else None,
            "about": rng.choice(("named", "unnamed", "syntax")) if kind == "feature" else None,
            "measured": k % 2 == 0 if (k := len(id)) and kind == "feature" else None,
            "first_order": effect and 0.9 * effect,
            "graph_effect": effect and 0.5 * effect,
        }

    nodes = [node(f"t{t['pos']}", "token", -1, t["pos"], f"token {t['text']}") for t in tokens]
    names = ["carbonyl carbon", "aromatic ring atom", "closes ring 1", "ester oxygen", "no concept matched"]
    for k in range(n_features):
        layer, pos = rng.randrange(n_layers), rng.randrange(len(tokens))
        nodes.append(node(f"f{layer}_{k}_{pos}", "feature", layer, pos, f"{names[k % 5]} ({layer}/{k})", k))
    for k in range(n_features // 6):
        layer, pos = k % n_layers, (5 * k) % len(tokens)
        nodes.append(node(f"e{k}", "error", layer, pos, f"error, layer {layer}"))
    nodes.append(node("goal", "target", n_layers, goal, "logit of O"))
    edges = []
    while len(edges) < n_edges:
        source, target = rng.sample(nodes, 2)
        if source["layer"] < target["layer"] and target["kind"] != "error":
            weight = rng.gauss(0, 1) ** 3
            edges.append([nodes.index(source), nodes.index(target), weight])
    edges.sort(key=lambda edge: -abs(edge[2]))
    columns = {name: [edge[i] for edge in edges] for i, name in enumerate(("source", "target", "weight"))}

    drawn = {
        name: {a: t[key] for t in atoms for a in t["writes"]}
        for name, key in (("signed", "signed"), ("hidden", "hidden"), ("mass", "score"))
    }
    mol = Chem.MolFromSmiles(smiles)
    example = draw_small(Chem.MolFromSmiles(ASPIRIN), {1: 2.0, 10: 1.0}, scale=2.0)
    features = {
        f"{n['layer']}_{n['feature']}": {
            "layer": n["layer"],
            "feature": n["feature"],
            "label": n["label"],
            "concept": None if "no concept" in n["label"] else n["label"].split(" (")[0],
            "f1": n["f1"],
            "f1_ci": [0.6, 0.8],
            "q": 0.003,
            "null_f1": 0.11,
            "density": 0.0134,
            "top_outputs": [{"token": "O", "weight": 0.8}, {"token": "[nH]", "weight": -0.3}],
            "examples": [
                {"group": g, "svg": example, "text": ASPIRIN, "activation": a, "tokens": [["C", a], ["(", 0.0]]}
                for g, a in (("top", 4.2), ("top", 4.1), ("middle", 2.0), ("weak", 0.2))
            ],
        }
        for n in nodes
        if n["kind"] == "feature" and n["feature"] != 3
    }
    checked = [n for n in nodes if n["kind"] == "feature"][:40]
    return {
        "title": "Aspirin",
        "input": smiles,
        "subject": "bundled:molm",
        "dictionary": "bundled:molm-clt",
        "command": f"isotrace trace '{smiles}' --mask {goal}",
        "created": "2026-01-01",
        "target": {
            "kind": "mask",
            "name": "Logit of O at position 22",
            "value": 7.31,
            "description": "The last atom was hidden from the model; its score for O minus the mean of all tokens.",
            "position": goal,
            "predictions": [{"token": "O", "probability": 0.93}, {"token": "N", "probability": 0.05}],
            "unit": "logits",
        },
        "summary": ["The model predicts O here mostly from the carbonyl written just before it.", "Atoms carry 71 %."],
        "warnings": ["17 % of the influence passes error nodes, which this page cannot explain."],
        "domain": "molecule",
        "element": "atom",
        "field": "chemistry",
        "structure": None,
        "grid": "<svg></svg>",
        "drawings": {
            name: draw_molecule(mol, weights, size=(460, 340), diverging=name != "mass")
            for name, weights in drawn.items()
        },
        "tokens": tokens,
        "units": [
            {
                "index": (a := t["writes"][0]),
                "symbol": t["text"],
                "name": f"{t['text']}{a}",
                "score": t["signed"],
                "mass": t["score"],
            }
            | {"effect": t["signed"], "sd": 0.1, "hidden": t["hidden"]}
            for t in atoms
        ],
        "picture": {
            "spellings": 6,
            "mean": 7.1,
            "sd": 0.41,
            "hidden_spearman": 0.45,
            "shown": "score",
            "hidden_spearman_ci": [0.1, 0.7],
            "hidden_reason": None,
            "unsettled": None,
            "trust": "How far to trust such a picture: not measured.",
        },
        "tracks": [],
        "map": None,
        "groups": [
            {"name": "ester", "elements": [1, 2, 3], "hidden": -0.76, "sd": 0.2, "beyond": True, "picture": 0.27},
            {"name": "CH3", "elements": [0], "hidden": 0.1, "sd": 0.3, "beyond": False, "picture": 0.67},
        ],
        "finding": {"sentence": "It reads 7.31 logits, against 1.2: ester lowers it.", "overturned": "", "colours": ""},
        "lanes": {
            name: {"n": 20, "sum": -0.125, "share": 0.25, "removed": 0.5, "mass": 0.75}
            for name in ("named", "unnamed", "syntax", "tokens")
        },
        "syntax": [
            {"token": t["text"], "pos": t["pos"], "score": t["score"], "effect": t["signed"]}
            for t in tokens
            if t["kind"] != "atom"
        ],
        "nodes": nodes,
        "edges": columns,
        "n_layers": n_layers,
        "stacks": [n_layers],
        "features": features,
        "verification": {
            "nodes": [
                {"id": n["id"], "predicted": n["effect"], "first_order": n["effect"], "graph": n["effect"]}
                | {"frozen": n["effect"] * 1.01, "free_running": n["effect"] * 0.8 + rng.gauss(0, 0.05)}
                | {"exact": k % 3 == 0}
                for k, n in enumerate(checked)
            ],
            "n_exact": 10,
            "pearson_frozen": {"value": 0.999, "ci": [0.998, 1.0]},
            "pearson_free_running": {"value": 0.91, "ci": [0.84, 0.95]},
            **{f"pearson_{name}": {"value": 0.7, "ci": [0.6, 0.8]} for name in ("first_order", "rest", "graph")},
        },
        "circuit": {
            "n_features": 48,
            "fraction_of_features": 0.0078,
            "full": 7.31,
            "empty": 1.2,
            "value": 6.9,
            "error": 0.41,
            "removed": 2.2,
            "reproduces": True,
            "reason": None,
            "kept": 0.93,
            "lost": 0.84,
            "sizes": [{"n": 2**k, "value": 7.31 * (1 - 0.8**k), "error": 7.31 * 0.8**k} for k in range(9)],
            "control": {
                "n": 24,
                "value": [rng.gauss(1.5, 0.5) for _ in range(24)],
                "removed": [rng.gauss(7, 0.2) for _ in range(24)],
                "error_mean": 5.8,
                "error_ci": [5.6, 6.0],
                "removed_mean": 7.0,
                "removed_ci": [6.9, 7.1],
                "spread": 1.9,
            },
            "neurons": {"n": 48, "value": 5.1, "error": 2.21, "reason": None},
        },
        "supporters": [
            {"layer": 1, "feature": 2, "position": 3, "token": "O", "label": "ester oxygen", "effect": 1.25}
            | {"kind": "named"}
            | {"measured": True, "first_order": 1.1, "graph_effect": 0.4}
        ],
        "opponents": [],
        "graph": {
            "n_nodes": len(nodes),
            "n_edges": len(edges),
            "n_nodes_full": 2 * len(nodes),
            "n_edges_full": 9 * len(edges),
            "agreement": 0.62,
            "replacement_score": 0.83,
            "completeness_score": 0.9,
            "max_completeness_error": 3.1e-6,
        },
        "fidelity": fidelity(),
        "spellings": {
            "told": "score",
            "spellings": [{"text": "O=C(C)Oc1ccccc1C(O)=O", "value": 7.0}, {"text": ASPIRIN, "value": 7.31}],
            "units": [{"index": t["writes"][0], "mean": t["signed"], "sd": 0.1 * rng.random()} for t in atoms],
            "rank_correlation": {"mean": 0.72, "ci": [0.6, 0.81]},
            "target_sd": 0.41,
        },
        "manifest": {"version": "0.1", "seed": 0, "weights": "sha256:0123", "seconds": 12.3},
    }


def fidelity() -> dict:
    mode = {"loss_recovered": 0.62, "top1_agreement": 0.8, "loss_recovered_ci": [0.6, 0.64], "kl": 0.31}
    return {"free_running": mode, "teacher_forced": mode | {"loss_recovered": 0.97, "loss_recovered_ci": [0.96, 0.98]}}


def index_payload() -> dict:
    svg = draw_molecule(Chem.MolFromSmiles(ASPIRIN), {1: 1.0, 3: 0.5}, size=(360, 220), diverging=False)
    page = {"href": "aspirin/mask.html", "target": "Logit of O", "value": 7.31, "description": "masked last atom"} | {
        "n_features": 48,
        "error": 0.41,
        "empty_error": 6.11,
        "control_error": float("nan"),
        "neuron_error": 2.21,
        "reason": None,
        "warnings": 2,
    }
    entry = {"name": "Aspirin", "text": ASPIRIN, "svg": svg, "legend": "Orange: up."}
    entry |= {"pages": [page, page | {"warnings": 0}]}
    return {
        "title": "Traces",
        "subject": "bundled:molm",
        "dictionary": "bundled:molm-clt",
        "created": "2026-01-01",
        "summary": ["Two molecules were traced, one input was left out."],
        "fidelity": fidelity(),
        "entries": [entry, entry | {"name": "Aspirin again"}],
        "over_molecules": [],
        "too_few": "Too few molecules for a table of substructures (it takes 5 with one target): t.",
        "rejects": [{"input": "C1CC<b>", "reason": "ring closure 1 is never closed"}],
    }


class Elements(HTMLParser):
    """Every element as (tag, attributes), and the text of the JSON script: what a browser's parser would see."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.data = ""
        self._in_data = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        self._in_data = tag == "script" and ("id", "data") in attrs

    def handle_endtag(self, tag):
        self._in_data = False

    def handle_data(self, data):
        self.data += data if self._in_data else ""


@pytest.mark.parametrize(("render", "payload"), [(render_trace, trace_payload), (render_index, index_payload)])
def test_page_asks_for_nothing(render, payload):
    html = render(payload())
    text = html.replace(SVG_NAMESPACE, "")
    assert not re.search(r"https?:|//[a-z]+\.|@import|\bsrc=|srcset=", text)
    assert all(target.startswith("data:") for target in re.findall(r"url\(\s*['\"]?([^)]*)", text))
    elements = Elements(html).found
    links = [attrs["href"] for _, attrs in elements if attrs.get("href")]
    assert links
    assert all(re.match(r"data:,|aspirin/", link) for link in links)
    assert not {tag for tag, _ in elements} & {"img", "iframe", "object", "embed", "base", "form"}
    policy = next(a["content"] for t, a in elements if t == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("attack", ["</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}"])
def test_hostile_text_stays_text(attack):
    payload = trace_payload() | shared({}, "title", "said", {"SMILES": "C"})
    clean = [tag for tag, _ in Elements(render_trace(payload)).found]
    for holder, key in [
        (payload, "title"),
        (payload, "input"),
        (payload["target"], "name"),
        (payload["tokens"][1], "text"),
        (payload["nodes"][-1], "label"),
        (payload["nodes"][len(payload["tokens"])], "label"),
        (payload["features"].setdefault("x", next(iter(payload["features"].values()))), "label"),
        (payload["manifest"], "version"),
        *((payload["share"], key) for key in ("title", "said")),
        *((payload["share"]["copies"][0], key) for key in ("name", "text")),
    ]:
        holder[key] = attack
    payload["manifest"][attack] = attack
    payload["warnings"][0] = attack
    parsed = Elements(html := render_trace(payload))
    assert [tag for tag, _ in parsed.found if tag in ("script", "img")] == [t for t in clean if t in ("script", "img")]
    assert not any(name.startswith("on") for _, attrs in parsed.found for name in attrs)
    assert [attrs["data-copy"] for _, attrs in parsed.found if "data-copy" in attrs] == [attack]
    assert json.loads(parsed.data)["tokens"][1]["text"] == attack
    assert ">49<" not in html


def test_missing_numbers_become_null():
    payload = trace_payload()
    payload["circuit"]["kept"] = float("nan")
    payload["tokens"][2]["score"] = float("inf")
    payload["nodes"][40]["influence"] = float("nan")
    data = json.loads(
        Elements(render_trace(payload)).data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert data["circuit"]["kept"] is None
    assert data["tokens"][2]["score"] is None
    assert data["nodes"][40]["influence"] is None


def test_payload_is_left_alone():
    payload = trace_payload()
    render_trace(payload)
    assert payload == trace_payload()


def test_edges_name_nodes():
    payload = trace_payload()
    data = json.loads(Elements(render_trace(payload)).data)
    assert [n["id"] for n in data["nodes"]] == [n["id"] for n in payload["nodes"]]
    columns = [payload["edges"][name] for name in ("source", "target", "weight")]
    assert data["edges"] == [list(edge) for edge in zip(*columns, strict=True)]
    n, last = len(payload["nodes"]), columns[0][-1]
    columns[0][-1] = n
    with pytest.raises(InputError, match=f"node {n} of {n}"):
        render_trace(payload)
    columns[0][-1] = last
    payload["nodes"].append(payload["nodes"][0])
    with pytest.raises(InputError, match="share an id"):
        render_trace(payload)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (-0.5, "−0.500"),
        (12.345, "12.3"),
        (3.1e-6, "3.1e−6"),
        (12345, "12,345"),
        (150.4, "150"),
    ],
)
def test_numbers_read(value, text):
    assert number(value) == text


def test_shares_and_intervals_read():
    assert (percent(0.0078), percent(0.71), percent(None)) == ("0.8 %", "71 %", "–")
    assert (interval([-0.25, None]), interval(None)) == ("[−0.250, –]", "")


def lit(page, selector: str) -> list[str]:
    return page.eval_on_selector_all(f"{selector}.lit", "found => found.map(e => e.dataset.element ?? e.dataset.pos)")


@pytest.mark.browser
def test_hovering_a_node_lights_its_atoms_and_tokens(open_page):
    payload = trace_payload()
    page = open_page(render_trace(payload))
    atom_token = next(t for t in payload["tokens"] if t["kind"] == "atom")
    assert page.locator(".lit").count() == 0
    page.hover(f'[data-node-id="t{atom_token["pos"]}"]')
    assert set(lit(page, "#drawing .signed .hit")) == {str(a) for a in atom_token["about"]}
    assert lit(page, "#strip [data-pos]") == [str(atom_token["pos"])]
    assert page.locator("#tooltip").is_visible()
    page.hover("h1")
    assert page.locator(".lit").count() == 0
    assert page.locator("#tooltip").is_hidden()


@pytest.mark.browser
def test_hovering_a_token_and_an_atom(open_page):
    payload = trace_payload()
    page = open_page(render_trace(payload))
    ring = next(t for t in payload["tokens"] if t["kind"] == "ring")
    page.hover(f'#strip [data-pos="{ring["pos"]}"]')
    assert set(lit(page, "#drawing .signed .hit")) == {str(a) for a in ring["about"]}
    here = {n["id"] for n in payload["nodes"] if n["pos"] == ring["pos"]}
    assert set(page.eval_on_selector_all(".node.lit", "found => found.map(e => e.dataset.nodeId)")) == here
    page.hover('#drawing .signed .hit[data-element="4"]')
    own = [t["pos"] for t in payload["tokens"] if t["writes"] == [4]]
    assert lit(page, "#strip [data-pos]") == [str(p) for p in own]


@pytest.mark.browser
def test_clicking_a_node_shows_its_card(open_page):
    payload = trace_payload()
    node = next(n for n in payload["nodes"] if n["kind"] == "feature" and n["feature"] == 5)
    node["label"] = "<b>bold</b> & label"
    page = open_page(render_trace(payload))
    page.click(f'[data-node-id="{node["id"]}"]')
    assert page.text_content("#card h3") == node["label"]
    assert page.locator("#card .example svg").count() == 4
    ends = zip(payload["edges"]["source"], payload["edges"]["target"], strict=True)
    neighbours = [pair for pair in ends if payload["nodes"].index(node) in pair]
    buttons = page.locator("#card button[data-ref]")
    assert 0 < buttons.count() <= len(neighbours)
    other = buttons.first.get_attribute("data-ref")
    buttons.first.click()
    assert page.text_content("#card h3") == next(n["label"] for n in payload["nodes"] if n["id"] == other)
    page.keyboard.press("Escape")
    assert page.locator(".node.selected").count() == 0


@pytest.mark.browser
def test_table_row_selects_by_keyboard(open_page):
    payload = trace_payload()
    page = open_page(render_trace(payload))
    told = [n for n in payload["nodes"] if n["about"] in ("named", "unnamed")]
    strongest = max(told, key=lambda n: n["influence"])
    assert page.locator("#features tbody tr").count() == 31, "and one for all syntax"
    page.focus("#features tbody tr:first-child button")
    page.keyboard.press("Enter")
    assert page.text_content("#card h3") == strongest["label"]


@pytest.mark.browser
def test_colours_switch(open_page):
    page = open_page(render_trace(trace_payload()))
    drawings = [page.locator(f"div.{name}") for name in ("signed", "hiding", "mass")]
    for name, seen in (("signed", 0), ("hiding", 1), ("mass", 2)):
        page.click(f"label:has(#mode-{name})")
        assert [d.is_visible() for d in drawings] == [n == seen for n in range(3)]
        legends = page.locator("#drawing .legend")
        assert [legends.nth(n).is_visible() for n in range(3)] == [n == seen for n in range(3)]


def test_the_finding_stands_before_the_picture_and_warnings_last():
    payload = trace_payload()
    payload["picture"]["unsettled"] = "Spellings differ by more."
    payload["finding"]["overturned"] = "But its spellings differ by more."
    payload["warnings"] = ["Spellings differ by more.", "Another."]
    page = render_trace(payload)
    order = ("ester lowers it.", "But its spellings", 'id="drawing"', "Tokens</h2>", "Attribution graph", "Another.")
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert "Spellings differ by more." not in page, "said once, in the finding"


def test_a_picture_without_a_measurement_says_why():
    payload = trace_payload()
    payload["picture"] |= {"hidden_reason": "it has no mask token", "hidden_spearman": None}
    page = render_trace(payload)
    assert "Not set beside a measurement: it has no mask token." in page
    assert 'id="mode-hiding"' not in page


def wait_for_text(page, text):
    """Until the slider's caption says so. Not `wait_for_function`: it evaluates a string, which the page's
    content security policy forbids."""
    from playwright.sync_api import expect

    expect(page.locator("#shown")).to_contain_text(text, timeout=20_000)


@pytest.mark.browser
def test_threshold_changes_edges(open_page):
    payload = trace_payload()
    page = open_page(render_trace(payload))

    def drawn() -> int:
        return sum(
            page.eval_on_selector_all(".edges path", "ps => ps.map(p => p.getAttribute('d').split('M').length-1)")
        )

    assert drawn() == 300
    page.fill("#threshold", "1000")
    wait_for_text(page, "500 of 500")
    assert drawn() == len(payload["edges"]["weight"])


@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.browser
def test_nothing_is_wider_than_the_window(open_page, width):
    for html in (render_trace(trace_payload()), render_index(index_payload())):
        page = open_page(html, width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_bare_payload_renders(open_page):
    payload = trace_payload(n_features=0, n_edges=0)
    payload |= {"spellings": None, "warnings": [], "features": {}, "nodes": payload["nodes"][-1:]}
    payload["nodes"][0]["pos"] = payload["target"]["position"] = None
    payload["target"] |= {"kind": "probe", "predictions": None}
    payload["circuit"]["curve"] = []
    payload["circuit"]["sufficiency"] = payload["verification"]["pearson_frozen"]["value"] = float("nan")
    page = open_page(render_trace(payload))
    page.hover('[data-node-id="goal"]')
    assert "Not computed" in page.text_content("main")


@pytest.mark.browser
def test_large_graph_stays_quick(open_page):
    payload = trace_payload(n_features=410, n_edges=10_000)
    assert len(payload["nodes"]) >= 500
    start = time.perf_counter()
    page = open_page(render_trace(payload))
    page.fill("#threshold", "1000")
    wait_for_text(page, "10,000 of")
    assert time.perf_counter() - start < 10
    # Script time of a hover, without the pointer's own travel: what a reader would feel as lag.
    spent = page.evaluate(
        """() => {
            const all = [...document.querySelectorAll("[data-node-id]")].slice(0, 200), start = performance.now();
            for (const e of all) e.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
            return (performance.now() - start) / all.length;
        }"""
    )
    assert spent < 50
