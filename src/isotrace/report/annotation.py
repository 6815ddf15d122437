"""The run folder of an annotation: its tables, its summary and the atlas."""

from isotrace.annotation.annotate import Annotation
from isotrace.annotation.data import Data
from isotrace.report.atlas import AtlasTables, atlas_page
from isotrace.runs import Run

TABLES = ("features", "associations", "examples", "sequences", "concepts", "coverage", "rejects")


def save_annotation(run: Run, annotation: Annotation, data: Data) -> None:
    """Write `annotation` into the open run; docs/annotate.md lists the files."""
    for name in TABLES:
        run.table(name, getattr(annotation, name))
    run.json("annotation", annotation.to_dict())
    run.text("atlas.html", page(annotation, data))


def page(annotation: Annotation, data: Data) -> str:
    """The atlas as HTML. Only sequences that examples show are drawn."""
    shown = set(annotation.examples["index"].unique())
    drawn = [data.domain.picture(r) if i in shown else None for i, r in zip(data.index, data.readings, strict=True)]
    tables = {name: getattr(annotation, name) for name in TABLES if name != "rejects"}
    title = f"Feature atlas of {annotation.summary['dictionary']}"
    return atlas_page(AtlasTables(**tables), title=title, summary=annotation.summary, pictures=drawn)
