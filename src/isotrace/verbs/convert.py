"""Other tools' dictionaries, read and written."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from isotrace.base.errors import InputError, SubjectError
from isotrace.base.settings import expanded
from isotrace.verbs.request import PLACE, REPEATED, Floats, Loaded, Progress, Request, Shell, verb

if TYPE_CHECKING:
    from isotrace.dictionaries.interop.converting import Conversion


class ConvertRequest(Request):
    source: Annotated[tuple[Loaded, ...], PLACE]
    """Folder or file; several become one dictionary over several layers."""
    to: str
    """isotrace, saelens, sparsify, clt_training, circuit_tracer or dictionary_learning (docs/convert.md)."""
    out: Path
    """Folder to write; it must not exist or be empty."""
    source_format: Annotated[str | None, Shell(name="--from")] = None
    """Format of the source, where its files do not declare it."""
    subject: Loaded = None
    """bundled:molm, hf:org/name or a folder; for --to isotrace."""
    layer: Annotated[tuple[Annotated[int, Field(ge=0)], ...], REPEATED] = ()
    """Layer of the subject, from 0; once for each layer read."""
    hookpoint_in: str | None = None
    """What features read: layers.{}.NAME."""
    hookpoint_out: str | None = None
    """What features write to: layers.{}.NAME."""
    k: int | None = Field(default=None, ge=1)
    """Active features per token, where the files do not say."""
    dtype: Floats = "float32"
    """Of the weights written, for --to isotrace."""

    def look(self) -> None:
        super().look()
        for one in self.source:
            named = not isinstance(one, str | Path) or str(one).partition(":")[0] in ("bundled", "hf")
            if not named and not Path(expanded(str(one))).exists():
                raise InputError(f"{one} does not exist: check the path.")


@verb(ConvertRequest)
def convert(request: ConvertRequest, progress: Progress) -> "Conversion":
    """Convert a dictionary between formats; say what was folded, dropped or assumed, and check the result."""
    from isotrace.dictionaries.dictionary import Dictionary
    from isotrace.dictionaries.interop import Hints
    from isotrace.dictionaries.interop.converting import convert as converted
    from isotrace.dictionaries.interop.converting import read_source
    from isotrace.subjects.subject import Subject, load_subject

    hints = Hints(request.layer, request.hookpoint_in, request.hookpoint_out, request.k)
    subject = request.subject
    given = [one.folder if isinstance(one, Dictionary) else one for one in request.source]
    if None in given:
        raise InputError("a dictionary in memory is in no file that could be converted: save_pretrained it first.")
    sources = [expanded(str(one)) for one in given]
    if subject is not None and not isinstance(subject, Subject):
        try:
            subject = load_subject(subject, device="cpu")
        except SubjectError:
            read_source(sources, request.source_format, hints, None)  # a fault of the dictionary is told first
            raise
    return converted(
        sources, request.to, request.out, source_format=request.source_format, hints=hints, subject=subject,
        dtype=request.dtype,
    )  # fmt: skip
