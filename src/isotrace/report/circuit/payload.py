"""What the page of a task circuit says: headline sentences, the numbers beside their controls, parts, drawings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from isotrace.base.runs import to_jsonable
from isotrace.domains.domain import domain_of
from isotrace.report.circuit.figures import NOUNS, curve_svg, falls_svg, layers_svg
from isotrace.report.page import interval, number, percent, render_page

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
    summary: Mapping[str, Any], view: Mapping[str, Any], parts: pl.DataFrame, manifest: Mapping[str, Any]
) -> str:
    """HTML of one file that opens offline. `summary`, `view`, `parts` as in `CircuitResult`; `manifest`: of the run,
    empty where there is none. Raises InputError for a domain that is not installed."""
    page = to_jsonable(summary) | dict(view)
    fall, task = page["necessity"], page["task"]
    n, noun = fall["n"], NOUNS[page["mediator"]]
    kind = "classes" if len(task["classes"]) > 2 else task["kind"]
    page |= {
        "title": f"The circuit of {task['label']}",
        "metric_name": METRICS[page["task_metric"]["name"]],
        "n": n,
        "noun": noun,
        "sentences": sentences(page),
        "curve": curve_svg(summary),
        "layers_picture": layers_svg(page["layers"]),
        "falls": falls_svg([
            (f"{n:,} {noun}", fall["fall"], fall["ci"]),
            ("random ones", fall["random"]["mean"], fall["random"]["ci"]),
            (f"{fall['neurons']['n']:,} neurons", fall["neurons"]["fall"], fall["neurons"]["ci"]),
        ]),
        "chosen_rows": chosen_rows(page, noun),
        "parts": to_jsonable(parts.head(SHOWN_PARTS).to_dicts()),
        "annotated": "label" in parts.columns and bool(parts["label"].ne("not annotated").any()),
        "drawings": to_jsonable([_drawn(row, view) for row in view["examples"]]),
        "explained": EXPLAINED[kind].format(second="".join(task["classes"][-1:]), element=view["element"]),
        "picked": PICKED[{"regression": "rank", "mutation": "rank", "residue": "residue"}.get(task["kind"], "hit")],
        "tables": {key: _table(page[key]) for key in ("overlap", "illusion") if page.get(key)},
        "created": manifest.get("started", ""),
        "command": manifest.get("command", ""),
    }  # fmt: skip
    return render_page("circuit.html.j2", page, script="", data=None)


def sentences(page: Mapping[str, Any]) -> list[str]:
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
    metric = _a(METRICS[about["name"]])
    found = [
        f"On {task['n_report']:,} sequences that nothing was chosen on, the subject has {metric} of "
        f"{number(about['subject'])} {interval(about['subject_ci'])}; chance is {number(about['chance'])}.",
    ]
    if about["subject_ci"][0] is not None and about["subject_ci"][0] > about["chance"]:
        found += [
            _chosen(page["choice"], n, noun),
            _listed(kept, "sufficiency", "of what is above chance"),
            _listed(lost, "fall", "of it"),
        ]
    else:
        found.append("The interval reaches down to chance, so that there is nothing a share could be of.")
    return [sentence.replace(" %", "\N{NO-BREAK SPACE}%") for sentence in found]


def _chosen(choice: Mapping[str, Any], n: int, noun: str) -> str:
    size = choice["features"]["79"]
    if size == n:
        return (
            f"{n:,} {noun} were chosen on the discovery part, before these sequences were looked at: the first size "
            "from which on every larger one keeps 79 % of what is above chance there."
        )
    said = f"it takes {size:,} {noun} to keep 79 % from there on" if size else "no size was found that keeps 79 %"
    return f"On the discovery part {said}; what follows is of {n:,} {noun}."


def chosen_rows(page: Mapping[str, Any], noun: str) -> list[tuple[str, list[str]]]:
    """(what, a cell per level): the sizes chosen, and what they keep on the report part."""
    found: dict[str, list[str]] = {}

    def add(name: str, cell: str) -> None:
        found.setdefault(name, []).append(cell)

    for level, entry in page["chosen"].items():
        own = entry and entry["neurons_chosen"]
        add(f"number of {noun}", f"{entry['n']:,} ({percent(entry['fraction'])})" if entry else "–")
        add("they keep, on the report part", _share(entry["free_running"], "sufficiency") if entry else "–")
        add("matched random ones", _share(entry["random"], "mean") if entry else "–")
        add("as many neurons", _share(entry["neurons"], "sufficiency") if entry else "–")
        add(f"{noun} − as many neurons", _difference(entry["neurons"]) if entry else "–")
        add("number of neurons, by the same rule", number(page["choice"]["neurons"][level]))
        add("they keep", _share(own, "sufficiency") if own else "–")
        add(f"{noun} − these neurons", _difference(own) if own else "–")
        add(f"number of {noun} in hindsight", number(page["in_hindsight"]["features"][level]))
    return [*found.items()]


def _listed(shares: Mapping[str, Mapping[str, Any]], key: str, of: str) -> str:
    """A sentence of what each share belongs to, its value and interval; `of` stands behind the first."""
    said = [f"{who} {_share(entry, key)}" for who, entry in shares.items()]
    return ", ".join([f"{said[0]} {of}", *said[1:]]) + "."


def _a(metric: str) -> str:
    return f"{'an' if metric[0] in 'AEIOUaeiouR' else 'a'} {metric}"


def _share(entry: Mapping[str, Any], key: str, ci: str = "ci") -> str:
    return f"{percent(entry[key])} [{percent(entry[ci][0])}, {percent(entry[ci][1])}]"


def _difference(neurons: Mapping[str, Any]) -> str:
    return _share(neurons, "difference", "difference_ci")


def _drawn(row: Mapping[str, Any], view: Mapping[str, Any]) -> dict[str, Any]:
    """An example as the page shows it: sentences, and pictures of what speaks for and against."""
    domain, weights = domain_of(view["domain"]), np.asarray(row["weights"])
    reading = domain.read(row["text"], row["tokens"], [(start, end) for start, end in row["offsets"]])
    scale = float(np.abs(weights).max())
    special = sum(w for w, unit in zip(row["weights"], reading.units, strict=True) if unit.kind == "special")
    made = {
        "name": row.get("name") or f"row {row['index']}", "text": row["text"], "right": row["right"], "scale": scale,
        "total": float(weights.sum()), "special": float(special), "label": _label(row["label"], view["element"]),
        "subject": _said(row["subject"]), "circuit": _said(row["circuit"]), "labelled": None,
    }  # fmt: skip
    for name, sign in (("for", 1), ("against", -1)):
        made[name] = domain.draw(reading, np.maximum(sign * weights, 0.0).tolist(), scale=scale or None)
    if any(row["marked"] or ()):
        made["labelled"] = domain.draw(reading, row["marked"], scale=1.0)
    return made


def _label(label: Mapping[str, Any], element: str) -> str:
    places = ", ".join(f"{element} {place}" for place in label.get("places", ()))
    if "class" in label:
        return label["class"]
    if "total" in label:
        return f"{label['labelled']} of {label['total']} {element}s"
    if "token" in label:
        return f"{label['token']}, masked at {places}"
    if label.get("mutations"):  # which circuits of earlier versions do not name
        return f"{number(label['value'])}, {':'.join(label['mutations'])}"
    return number(label["value"]) + (f", mutated at {places}" if places else "")


def _said(said: Mapping[str, Any]) -> str:
    if "class" in said:
        return f"{said['class']} ({percent(said['probability'])})"
    if "auroc" in said:
        known = said["auroc"] is not None
        return f"AUROC {number(said['auroc'])}" if known else "no AUROC: one kind of label only"
    if "hit" in said:
        hit = "names the token" if said["hit"] else "names another token"
        return f"{hit}, logit − mean {number(said['contrast'])}"
    return number(said["value"])


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
    if isinstance(value, list):
        pair = len(value) == 2 and all(v is None or isinstance(v, (int, float)) for v in value)
        return interval(value) if pair else ", ".join(_cell(v) for v in value)
    return number(value)
