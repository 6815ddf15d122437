"""The page that lists many traces."""

from typing import Any, Protocol

from isotrace.attribution.verification import NEARER
from isotrace.report.page import render_index
from isotrace.report.trace.payload import fidelity_table
from isotrace.subjects.subject import Subject


class Source(Protocol):
    """What made the traces: a subject, its dictionary's name and fidelity."""

    subject: Subject
    name: str
    fidelity: dict[str, Any] | None


def entry(name: str, smiles: str, svg: str) -> dict[str, Any]:
    """One molecule of the index; its traces are appended to `pages`."""
    return {"name": name, "smiles": smiles, "svg": svg, "pages": []}


def page_row(summary: dict[str, Any], href: str) -> dict[str, Any]:
    """One trace of a molecule: distances to the model's value, in the target's unit, and where its page is."""
    target, circuit = summary["target"], summary["circuit"]
    return {
        "href": href,
        "target": target["name"],
        "value": target["value"],
        "description": target["description"],
        "n_features": circuit["n_features"],
        "error": circuit["error"],
        "empty_error": abs(circuit["empty"] - circuit["full"]),
        "control_error": circuit["control"]["error_mean"],
        "neuron_error": circuit["neurons"]["error"],
        "reason": circuit["reason"],
        "warnings": len(summary["warnings"]),
    }


def claims(pages: list[dict[str, Any]]) -> list[str]:
    """What holds of the rows of `page_row`, by distance to the model."""
    n, beside = len(pages), [p for p in pages if p["neuron_error"] is not None]
    found = sum(p["reason"] is None for p in pages)
    nearer = sum(p["error"] < p["neuron_error"] for p in beside)
    said = [
        f"In {found} of {n} a circuit reproduces the prediction: alone it comes nearer to the model than with every "
        f"feature ablated, and than {NEARER:.0%} of matched random circuits."
    ]
    if beside:
        said.append(f"In {nearer} of {len(beside)} it comes nearer to the model than as many neurons.")
    return said


def index_page(
    title: str, source: Source, entries: list[dict[str, Any]], rejects: list[dict[str, Any]], created: str
) -> str:
    """HTML; `rejects` are rows with input and reason."""
    pages = [p for e in entries for p in e["pages"]]
    return render_index(
        {
            "title": title,
            "subject": source.subject.source,
            "dictionary": source.name,
            "created": created,
            "summary": [
                f"{len(pages)} predictions of {len(entries)} molecules, each traced to features and atoms.",
                *claims(pages),
            ],
            "fidelity": fidelity_table(source.fidelity),
            "entries": entries,
            "rejects": rejects,
        }
    )
