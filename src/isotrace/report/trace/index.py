"""The page that lists many traces."""

from typing import Any, Protocol

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
    """One trace of a molecule: its headline numbers, each with its control, and where its page is."""
    target, circuit = summary["target"], summary["circuit"]
    return {
        "href": href,
        "target": target["name"],
        "value": target["value"],
        "description": target["description"],
        "sufficiency": circuit["sufficiency"],
        "sufficiency_control": circuit["control"]["sufficiency_mean"],
        "necessity": circuit["necessity"],
        "necessity_control": circuit["control"]["necessity_mean"],
        "warnings": len(summary["warnings"]),
    }


def index_page(
    title: str, source: Source, entries: list[dict[str, Any]], rejects: list[dict[str, Any]], created: str
) -> str:
    """HTML; `rejects` are rows with input and reason."""
    pages = [p for e in entries for p in e["pages"]]
    beaten = sum(p["sufficiency"] > p["sufficiency_control"] for p in pages)
    return render_index(
        {
            "title": title,
            "subject": source.subject.source,
            "dictionary": source.name,
            "created": created,
            "summary": [
                f"{len(pages)} predictions of {len(entries)} molecules, each traced to features and atoms.",
                f"In {beaten} of {len(pages)} the circuit alone keeps more of the effect than matched random circuits.",
            ],
            "fidelity": fidelity_table(source.fidelity),
            "entries": entries,
            "rejects": rejects,
        }
    )
