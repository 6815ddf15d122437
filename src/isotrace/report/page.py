"""The trace report and the index over several: one HTML file each, with every style, script and drawing inline.

A page asks for nothing over the network. Its content security policy forbids requests and admits one script by
its hash, so text that reaches the page cannot run even if an escape were missed.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from isotrace.base.errors import InputError
from isotrace.base.runs import to_jsonable
from isotrace.domains.molecule.drawing import colour

_TEMPLATES = Path(__file__).parent / "templates"
_TOP_FEATURES = 30
_IN_SCRIPT = (
    "target",
    "element",
    "tokens",
    "units",
    "nodes",
    "n_layers",
    "stacks",
    "features",
    "verification",
    "circuit",
    "spellings",
)


def render_trace(payload: Mapping[str, Any]) -> str:
    """HTML of one trace.

    `payload` holds what the trace found as plain lists, dicts, strings and numbers: title, input, subject,
    dictionary, command, created, target, summary, warnings, domain, element, field, drawings (SVG text), tokens,
    units, syntax, nodes, edges (source, target, weight, a list each, ends as places in nodes, most influential first),
    n_layers, stacks (layers of the encoder and of the decoder, or of the only stack), features, verification, circuit,
    supporters, opponents, graph, fidelity, spellings (or None), manifest, and, where there is one, map.
    Numbers that are not finite become null and read "–". Raises InputError when an edge names an absent node or
    two nodes share an id, KeyError when a part is missing.
    """
    page = to_jsonable(payload)
    tokens, nodes = page["tokens"], page["nodes"]
    for name, diverging in (("score", False), ("signed", True), ("hidden", True)):
        scale = page[f"{name}_scale"] = max((abs(t[name] or 0.0) for t in tokens), default=0.0)
        for token in tokens:
            token[f"{name}_colour"] = colour(token[name] or 0.0, scale, diverging=diverging)
    for feature in page["features"].values():
        _colour_examples(feature["examples"])
    features = [n for n in nodes if n["kind"] == "feature"]
    ranked = sorted(features, key=lambda n: -(n["influence"] or 0.0))
    page["top"] = [n for n in ranked if n["about"] != "syntax"][:_TOP_FEATURES]
    page["written"] = [n for n in ranked if n["about"] == "syntax"][:_TOP_FEATURES]
    for name in ("score", "hidden"):
        page[f"unit_{name}_scale"] = max((abs(u[name]) for u in page["units"] if u[name] is not None), default=None)
    page["strongest"] = max((u["mass"] for u in page["units"] if u["mass"] is not None), default=None)
    page["n_feature_nodes"] = len(features)
    data = {key: page[key] for key in _IN_SCRIPT} | {"edges": _triples(page["edges"], nodes)}
    script = "".join(map(template_text, ("dom.js", "copy.js", "trace.js", "plots.js")))
    return render_page("trace.html.j2", page, script=script, data=in_script(data))


def render_index(payload: Mapping[str, Any]) -> str:
    """HTML that lists several traces.

    `payload` holds title, subject, dictionary, created, summary, fidelity, entries (name, text, svg, and pages
    with their headline numbers), over_molecules and too_few (tables of substructures) and rejects (input, reason).
    Links are the entries' `href` as given: relative.
    """
    return render_page("index.html.j2", to_jsonable(payload), script=template_text("copy.js"), data=None)


def render_page(template: str, page: dict[str, Any], *, script: str, data: Markup | None) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"'sha256-{digest}'" if script else "'none'"
    css = Markup(template_text("report.css"))
    return rendered(template, page | {"css": css, "script": Markup(script), "script_policy": policy, "data": data})


def rendered(template: str, values: dict[str, Any]) -> str:
    """A page, or a part of one."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    """One for all pages, so that a template is compiled once."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"num": number, "pct": percent, "ci": interval, "plural": plural, "svg": Markup}
    return environment


def number(value: Any) -> str:
    """`value` to three significant digits with a true minus sign, "–" for None and NaN; text passes unchanged."""
    if value is None or value != value:
        return "–"
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        text = f"{int(value):,}"
    elif abs(value) < 1e-3 or abs(value) >= 1e5:
        text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")
    else:
        text = f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    return text.replace("-", "−")


def signed(value: float | None) -> str:
    """`number` with a plus sign where it is above zero."""
    return "–" if value is None else ("+" if value > 0 else "") + number(value)


def plural(word: str) -> str:
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


def percent(value: float | None) -> str:
    """Share as a percentage, with a decimal below 10 %."""
    return "–" if value is None else f"{100 * value:.{1 if abs(value) < 0.1 else 0}f} %".replace("-", "−")


def interval(bounds: Sequence[float | None] | None) -> str:
    """Interval as "[lo, hi]", empty for None."""
    return f"[{number(bounds[0])}, {number(bounds[1])}]" if bounds else ""


def _colour_examples(examples: list[dict[str, Any]]) -> None:
    """Adds its colour to every token of a feature's examples, on one scale over all of them."""
    scale = max((activation or 0.0 for e in examples for _, activation in e["tokens"]), default=0.0)
    for example in examples:
        example["tokens"] = [[t, a, colour(a or 0.0, scale, diverging=False)] for t, a in example["tokens"]]


def _triples(edges: dict[str, list[Any]], nodes: list[dict[str, Any]]) -> list[tuple[int, int, float]]:
    """Edges that have a weight, as the script draws them."""
    if len({node["id"] for node in nodes}) < len(nodes):
        raise InputError("two nodes of the graph share an id: give every node its own.")
    if (end := max((*edges["source"], *edges["target"]), default=-1)) >= len(nodes):
        raise InputError(f"an edge names node {end} of {len(nodes)}: prune nodes and edges together.")
    rows = zip(edges["source"], edges["target"], edges["weight"], strict=True)
    return [row for row in rows if row[2] is not None]


def in_script(data: Any) -> Markup:
    """JSON that may stand inside a script element. Raises ValueError for NaN and infinities, see `to_jsonable`."""
    # "<" could close the script element; no other character matters to the HTML parser inside it.
    return Markup(json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def template_text(name: str) -> str:
    """A file of `report/templates` as it is."""
    return (_TEMPLATES / name).read_text(encoding="utf-8")
