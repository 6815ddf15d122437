"""The graph as a page opens it: supernodes closed, syntax in one node, names that fit."""

import re

import pytest
from test_page import trace_payload

from isotrace.report import render_trace

LOOK = """() => {
  const graph = document.getElementById("graph"), box = graph.getBoundingClientRect();
  const texts = [...graph.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
  const out = texts.filter(([, r]) => r.left < box.left || r.right > box.right || r.top < box.top
    || r.bottom > box.bottom);
  const across = (a, b) => a.left < b.right - 1 && b.left < a.right - 1;
  const meet = (a, b) => across(a, b) && a.top < b.bottom - 4 && b.top < a.bottom - 4;
  const all = texts.map(([, r]) => r), over = all.flatMap((a, i) => all.slice(i + 1).filter((b) => meet(a, b)));
  const scrolls = graph.scrollWidth > graph.clientWidth || graph.scrollHeight > graph.clientHeight;
  return [out.map(([t]) => t), over.length, scrolls];
}"""
"""Names that leave the box of the graph, pairs of names that lie on each other, whether the box scrolls."""


def closed_payload() -> dict:
    """With supernodes of long names, two of them of syntax only, and all that folds."""
    payload = trace_payload(n_features=120)
    nodes = payload["nodes"]
    places = [i for i, n in enumerate(nodes) if n["kind"] == "feature" and n["about"] != "syntax"]
    names = [f"a name that is far too long for any graph to show it whole, number {k}" for k in range(30)]
    folds = [{"kind": "syntax", "label": "syntax", "members": []}]
    folds[0]["members"] = [i for i, n in enumerate(nodes) if n["about"] == "syntax"]
    atoms = [i for i, n in enumerate(nodes) if n["kind"] == "token"]
    folds += [{"kind": "token", "label": f"group {k} of atoms", "members": atoms[k::7]} for k in range(7)]
    config, stability = {"threshold": 0.5}, None
    file = {"groups": [{"name": n, "features": []} for n in names], "config": config, "stability": stability}
    payload["circuit"]["supernodes"] = {"file": file, "members": [places[k::30] for k in range(30)], "folds": folds}
    return payload


@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.browser
def test_the_closed_graph_fits_its_box(open_page, width):
    payload = closed_payload()
    page = open_page(render_trace(payload), width)
    assert page.is_checked("#collapse"), "closed by default"
    outside, overlaps, scrolls = page.evaluate(LOOK)
    assert not outside
    assert not overlaps
    assert not scrolls
    name = payload["circuit"]["supernodes"]["file"]["groups"][0]["name"]
    shown = page.locator('[data-name="s0"]')
    assert shown.locator("title").text_content() == name
    assert shown.text_content().removeprefix(name).endswith("…")


@pytest.mark.browser
def test_a_closed_node_adds_up_what_is_in_it(open_page):
    payload = closed_payload()
    page = open_page(render_trace(payload))
    fold = payload["circuit"]["supernodes"]["folds"][0]["members"]
    members = [payload["nodes"][i] for i in fold]
    page.hover('[data-node-id="fold0"]', force=True)
    told = page.inner_text("#tooltip")
    assert f"{len(members)} nodes" in told
    total = sum(n["effect"] for n in members)
    (said,) = re.findall(r"effects (\S+) logits, summed", told)
    assert float(said.replace("−", "-")) == pytest.approx(total, rel=1e-2)
    strongest = max(members, key=lambda n: abs(n["effect"]))
    assert strongest["label"] in told
    page.hover('[data-node-id="goal"]', force=True)
    assert "logit of O" in page.inner_text("#tooltip")
    page.uncheck("#collapse")
    assert page.locator('[data-node-id="fold0"]').count() == 0
    assert page.locator(f'[data-node-id="{members[0]["id"]}"]').count() == 1
