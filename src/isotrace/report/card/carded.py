"""Results that have a card to share: 1200 × 630 pixels, as SVG and PNG, and how their pages offer it."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from isotrace.base.errors import InputError
from isotrace.base.files import write_whole
from isotrace.base.result import Result

FILES = ("card.svg", "card.png")


class Carded(Result):
    """See `TraceResult` and `PairResult`."""

    @abstractmethod
    def card_svg(self) -> str:
        """The card as SVG text, which needs no font of its own."""

    def card(self, path: str | Path) -> Path:
        """Save the card as `.svg` or `.png`. Raises InputError for another ending, RunError if the disk refuses."""
        path = Path(path)
        if path.suffix.lower() not in (".svg", ".png"):
            raise InputError(f"{path} is no file for a card: end its name in .svg or .png.")
        return write_whole(path, self._as(path.suffix.lower()))

    def beside(self) -> Mapping[str, bytes]:
        return {name: self._as(Path(name).suffix) for name in FILES}

    def _as(self, suffix: str) -> bytes:
        from isotrace.report.card.raster import png

        return self.card_svg().encode() if suffix == ".svg" else png(self.card_svg())


def shared(manifest: Mapping[str, Any], title: str, said: str, copies: Mapping[str, str]) -> dict[str, Any]:
    """What a page says of itself where it is linked to, and offers to take along (`share.html.j2`): its cards, if they
    lie beside it, the page that lists it, and texts to copy by what the button is called."""
    found = [name for name in FILES if name in manifest.get("files", ())]
    return {
        "share": {
            "title": title,
            "said": said,
            "cards": found,
            "home": manifest.get("home"),
            "copies": [{"name": name, "text": text} for name, text in copies.items() if text],
        }
    }


def tsv(frame: pl.DataFrame) -> str:
    """A table as spreadsheets take it when it is pasted, without the columns that hold lists."""
    flat = [name for name, kind in frame.schema.items() if not kind.is_nested()]
    return frame.select(flat).write_csv(separator="\t")
