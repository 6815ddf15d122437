"""What the page of a task circuit says: headline sentences, the numbers beside their controls, parts, drawings."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from isotrace.base.runs import to_jsonable
from isotrace.datasets.tasks import PARTS
from isotrace.discovery.tasks.task_circuit import TaskCircuit
from isotrace.report.circuit.circuit_figures import NOUNS, curve_svg, falls_svg, layers_svg
from isotrace.report.page import finite, interval, number, percent, render_page

SHOWN_PARTS = 200
NAMES = ("layer", "feature")  # columns whose numbers name something
METRICS = {"auroc": "AUROC", "macro_auroc": "macro AUROC", "balanced_accuracy": "balanced accuracy",
           "accuracy": "accuracy", "spearman": "Spearman correlation", "r2": "R²"}  # fmt: skip
EXPLAINED = {
    "class": "the log-odds of {second}",
    "classes": "the logit of the class that the subject predicts, less the mean of the others",
    "regression": "the predicted number",
    "residue": "the mean log-odds of labelled {element}s, less that of the others",
    "masked": "the logit of the masked token, less the mean over the vocabulary",
    "mutation": "the predicted effect: logits after less logits before",
}
PICKED = {
    "hit": "“Right” are drawn at random from those that the subject gets right, the half of higher margin; “wrong” "
    "from all others.",
    "rank": "“Right” are drawn at random from the quarter on which rank of prediction and rank of label are closest, "
    "“wrong” from the quarter on which they are farthest apart.",
    "residue": "“Right” are drawn at random from the quarter of highest AUROC inside the sequence, “wrong” from the "
    "quarter of lowest.",
}


def render_circuit(
    found: TaskCircuit,
    about: Mapping[str, str],
    parts: pl.DataFrame,
    layers: Sequence[dict[str, Any]],
    drawings: Sequence[dict[str, Any]],
    manifest: Mapping[str, Any],
) -> str:
    """HTML of one file that opens offline. `about`: subject, dictionary, element; the rest as `save_circuit` has it."""
    summary = found.summary
    fall = summary["necessity"]
    n, noun = fall["n"], NOUNS[summary["mediator"]]
    page = finite(to_jsonable(summary)) | dict(about)
    page |= {
        "title": f"The circuit of {found.data.label}",
        "metric_name": METRICS[found.readout.metric],
        "n": n,
        "noun": noun,
        "entry": next(e for e in page["sweep"] if e["n"] == n),
        "sentences": sentences(page, METRICS[found.readout.metric]),
        "groups": {part: len({e.group for e in found.data.parts[part]}) for part in PARTS},
        "classes_shown": _classes(found),
        "curve": curve_svg(summary),
        "layers_picture": layers_svg(layers),
        "falls": falls_svg([
            (f"{n:,} {noun}", fall["fall"], fall["ci"]),
            ("random ones", fall["random"]["mean"], fall["random"]["ci"]),
            (f"{fall['neurons']['n']:,} neurons", fall["neurons"]["fall"], fall["neurons"]["ci"]),
        ]),
        "parts": finite(parts.head(SHOWN_PARTS).to_dicts()),
        "annotated": "label" in parts.columns and bool(parts["label"].ne("not annotated").any()),
        "drawings": finite(drawings),
        "explained": _explained(found, about["element"]),
        "picked": PICKED[{"regression": "rank", "mutation": "rank", "residue": "residue"}.get(found.data.kind, "hit")],
        "tables": {key: _table(_located(page[key], found)) for key in ("overlap", "illusion") if page.get(key)},
        "config": to_jsonable(found.config),
        "created": manifest["started"],
        "command": manifest["command"],
    }  # fmt: skip
    return render_page("circuit.html.j2", page, script="", data=None)


def sentences(page: Mapping[str, Any], metric: str) -> list[str]:
    """The result in words. `page` is the summary with None for numbers that are not finite."""
    task, about, fall, empty = page["task"], page["task_metric"], page["necessity"], page["empty"]
    n, n_all, noun = fall["n"], page["n_features"], NOUNS[page["mediator"]]
    entry = next(e for e in page["sweep"] if e["n"] == n)
    kept = {
        f"{n:,} of {n_all:,} {noun} ({percent(n / n_all)}) alone keep": entry["free_running"],
        "as many matched random ones": entry["random"] | {"sufficiency": entry["random"]["mean"]},
        f"the best {entry['neurons']['n']:,} neurons": entry["neurons"],
        f"none of the {noun}": empty,
    }
    lost = {
        f"Without these {n:,} {noun} the subject loses": fall,
        "without as many random ones": fall["random"] | {"fall": fall["random"]["mean"]},
        f"without the best {fall['neurons']['n']:,} neurons": fall["neurons"],
    }
    found = [
        f"On {task['n_report']:,} sequences that nothing was chosen on, the subject has {_a(metric)} of "
        f"{number(about['subject'])} {interval(about['subject_ci'])}; chance is {number(about['chance'])}."
    ]
    if page["smallest"]["79"] is None:
        found.append(f"No circuit of the sweep keeps 79 % of what is above chance; what follows is of {n:,} {noun}.")
    found.append(_listed(kept, "sufficiency", "of what is above chance"))
    found.append(_listed(lost, "fall", "of it"))
    return [sentence.replace(" %", "\N{NO-BREAK SPACE}%") for sentence in found]


def _listed(shares: Mapping[str, Mapping[str, Any]], key: str, of: str) -> str:
    """A sentence of what each share belongs to, its value and interval; `of` stands behind the first."""
    said = [f"{who} {_share(entry[key], entry['ci'])}" for who, entry in shares.items()]
    return ", ".join([f"{said[0]} {of}", *said[1:]]) + "."


def _a(metric: str) -> str:
    return f"{'an' if metric[0] in 'AEIOUaeiouR' else 'a'} {metric}"


def _share(value: float | None, ci: Sequence[float | None]) -> str:
    return f"{percent(value)} [{percent(ci[0])}, {percent(ci[1])}]"


def _classes(found: TaskCircuit) -> list[dict[str, Any]]:
    """How many examples of each class stand in each part."""
    data = found.data
    return [
        {"name": name} | {part: sum(int(e.y) == i for e in data.parts[part]) for part in PARTS}
        for i, name in enumerate(data.classes)
    ]


def _explained(found: TaskCircuit, element: str) -> str:
    data = found.data
    kind = "classes" if len(data.classes) > 2 else data.kind
    return EXPLAINED[kind].format(second=data.classes[-1] if data.classes else "", element=element)


def _located(rows: Sequence[dict[str, Any]], found: TaskCircuit) -> list[dict[str, Any]]:
    """The rows with the subject's numbers of the layers."""
    numbers = found.layer_numbers()
    return [row | {"layer": numbers[row["layer"]]} if "layer" in row else row for row in rows]


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of any one shape as columns and cells of text."""
    columns = [*rows[0]]
    return {
        "columns": [c.replace("_", " ") for c in columns],
        "rows": [[str(row[c]) if c in NAMES else _cell(row[c]) for c in columns] for row in rows],
    }


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        pair = len(value) == 2 and all(v is None or isinstance(v, (int, float)) for v in value)
        return interval(value) if pair else ", ".join(_cell(v) for v in value)
    return number(value)
