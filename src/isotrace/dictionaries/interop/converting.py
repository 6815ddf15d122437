"""From any format to any other: read, write, read back, and compare the two functions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isotrace.base.errors import DictionaryError, InputError, RunError
from isotrace.base.files import LOCK, locked
from isotrace.dictionaries import interop
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.interop.foreign import Hints
from isotrace.dictionaries.saving import (
    check_match,
    dictionary_folder,
    load_dictionary,
    read_record,
    reference,
    save_dictionary,
)
from isotrace.subjects.subject import Subject

OWN = "isotrace"
CHECK_TOKENS = 64
TOLERANCE = 1e-4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Conversion:
    """What was done. `difference_features`, `difference_output`: of the written dictionary, read back, from the one
    read, on standard normal input: largest absolute difference over largest absolute value."""

    source: tuple[str, ...]
    source_format: str
    target_format: str
    folder: str
    architecture: str
    activation: str
    layers: tuple[int, ...]
    hookpoints: tuple[str, str]
    n_features: int
    notes: tuple[str, ...]
    difference_features: float
    difference_output: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def convert(
    sources: Sequence[str],
    target: str,
    out: Path,
    *,
    source_format: str | None,
    hints: Hints,
    subject: Subject | None,
    dtype: str = "float32",
) -> Conversion:
    """Convert `sources` (folders, files; of isotrace also `bundled:` and `hf:`) to `target`, a format or `isotrace`.

    `subject` must be given for `isotrace`, whose dictionaries belong to one; its depth replaces `hints.n_layers`. Only
    isotrace's own folders can be written in another `dtype` than float32. Raises InputError for an unknown format or an
    option that is missing, DictionaryError for files that are damaged or that the other format cannot hold, RunError if
    `out` holds something or cannot be written.
    """
    if target != OWN and target not in interop.written():
        raise InputError(f"{target!r} cannot be written: --to is {OWN} or one of {', '.join(interop.written())}.")
    if dtype not in DTYPES or (dtype != "float32" and target != OWN):
        raise InputError(f"--dtype {dtype!r}: use float32, or for --to {OWN} one of {', '.join(DTYPES)}.")
    if target == OWN and subject is None:
        raise InputError(
            "an isotrace dictionary belongs to a subject: give --subject bundled:NAME, hf:NAME or a folder."
        )
    with _own(out):
        if subject is not None:
            hints = Hints(hints.layers, hints.hookpoint_in, hints.hookpoint_out, hints.k, subject.n_layers)
        dictionary, found, notes, name = read_source(sources, source_format, hints, subject)
        config = dictionary.config
        if target == OWN:
            assert subject is not None
            for option, site in (("--hookpoint-in", config.hookpoint_in), ("--hookpoint-out", config.hookpoint_out)):
                if site.rpartition(".")[2] not in subject.family.hookpoints:
                    raise DictionaryError(
                        f"{subject.source} has no hookpoint {site}, which the files name: give {option} if they mean "
                        f"another, of {', '.join(subject.family.hookpoints)}."
                    )
            if config.layers[-1] >= subject.n_layers or {config.d_in, config.d_out} != {subject.d_model}:
                raise DictionaryError(
                    f"layers {config.layers} of width {config.d_in} → {config.d_out} do not fit {subject.source} with "
                    f"{subject.n_layers} of {subject.d_model}: give its own --subject and --layer."
                )
            training = {"converted_from": found, "sources": list(sources), "notes": list(notes)}
            try:
                save_dictionary(dictionary, out, reference(subject), dtype=DTYPES[dtype], training=training)
            except OSError as error:
                raise RunError(f"cannot write {out} ({error.strerror}): free space or choose another --out.") from error
            again = load_dictionary(out, subject)
        else:
            notes += tuple(interop.write(dictionary, out, target, name))
            if found == OWN:
                notes += (
                    f"{target} keeps neither the subject's hash nor mean activations, densities and training record",
                )
            back = Hints(config.layers, config.hookpoint_in, config.hookpoint_out, config.k)
            again = interop.read([out], back, target).dictionary()
        features, output = difference(dictionary, again)
        if dtype == "float32" and max(features, output) > TOLERANCE:
            raise DictionaryError(
                f"what was written to {out} is another function (by {output:.2g}): please report this."
            )
        return Conversion(
            source=tuple(sources),
            source_format=found,
            target_format=target,
            folder=str(out),
            architecture=config.architecture,
            activation=config.activation,
            layers=config.layers,
            hookpoints=(config.hookpoint_in, config.hookpoint_out),
            n_features=config.n_features,
            notes=notes,
            difference_features=features,
            difference_output=output,
        )


@contextmanager
def _own(out: Path) -> Iterator[None]:
    """`out`, empty, is this process's alone; it goes where nothing was written. Raises RunError as `convert`."""
    _require_empty(out)
    try:
        with locked(out):
            _require_empty(out)  # what another process had in hand until now is there
            yield
    finally:
        with suppress(OSError):  # it holds what was written
            out.rmdir()


def _require_empty(out: Path) -> None:
    try:
        occupied = out.exists() and (not out.is_dir() or any(file.name != LOCK for file in out.iterdir()))
    except OSError as error:
        raise RunError(f"cannot use {out} ({error.strerror}): choose another --out.") from error
    if occupied:
        raise RunError(f"{out} exists and is not an empty folder: choose another --out.")


def read_source(
    sources: Sequence[str], format: str | None, hints: Hints, subject: Subject | None
) -> tuple[Dictionary, str, tuple[str, ...], str]:
    """(dictionary, its format, notes, the subject's source). Raises as `convert`."""
    own = sources[0].partition(":")[0] in ("bundled", "hf") or (Path(sources[0]) / "dictionary.json").is_file()
    if format == OWN or (format is None and own):
        if len(sources) > 1:
            raise InputError("an isotrace dictionary is one folder: give one source.")
        record = read_record(dictionary_folder(sources[0]))
        if subject is not None:
            check_match(record, subject, sources[0])
        return load_dictionary(sources[0]), OWN, (), record.subject.source
    paths = [Path(source) for source in sources]
    foreign = interop.read(paths, hints, format)
    name = "unknown" if subject is None else subject.source
    return foreign.dictionary(), format or interop.detect(paths[0]), foreign.notes, name


@torch.no_grad()
def difference(a: Dictionary, b: Dictionary) -> tuple[float, float]:
    """(features, output): largest absolute difference over largest absolute value, on standard normal input."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(a.config.n_layers, CHECK_TOKENS, a.config.d_in, generator=generator)

    def features(d: Dictionary) -> Tensor:
        return torch.stack([d.encode(s, x[s]).dense(d.config.n_features) for s in range(d.config.n_layers)])

    return _relative(features(a), features(b)), _relative(a(x), b(x))


def _relative(a: Tensor, b: Tensor) -> float:
    largest = a.abs().max()
    return float((a - b).abs().max() / largest) if largest > 0 else float(b.abs().max())
