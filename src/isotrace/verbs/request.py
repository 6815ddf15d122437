"""What a verb can be asked, written once: the fields of a request are the parameters of its function and the options
of its command, their docstrings the documentation of the one, the help of the other and the text of a JSON schema.

A field that takes a subject, a dictionary or data takes a name (`bundled:molm`, a path) or the object itself.
"""

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial, wraps
from inspect import Parameter, Signature, cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError, core_schema

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress, shortened, shown
from isotrace.base.settings import Seed, expanded, whole_number

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

Loaded = Annotated[Any, WithJsonSchema({"type": "string"})]
"""A name, or what it stands for."""
Data = Annotated[
    Loaded,
    Field(
        description="Sequences: a file (CSV, TSV, Parquet, .smi, SDF, FASTA, …), - for stdin; in Python also a list, a "
        "Series, a DataFrame or molecules."
    ),
]
Column = Annotated[str | None, Field(description="Column of the data that holds the sequences.")]
LOOKED_AT = 2**20
"""Bytes of a file that is read twice without anybody noticing."""
Floats = Literal["float32", "float16", "bfloat16"]
R = TypeVar("R", bound="Request")
T = TypeVar("T")


@dataclass(frozen=True)
class Shell:
    """How a field is typed where it is no plain option: by its place, under another name, several between commas."""

    place: bool = False
    name: str | None = None
    commas: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """One value stands for a tuple of it."""
        if not any(get_origin(part) is tuple for part in (source, *get_args(source))):
            return handler(source)
        several = partial(self._several, int in _parts(source))
        return core_schema.no_info_before_validator_function(several, handler(source))

    def _several(self, whole: bool, value: Any) -> Any:
        if self.commas and isinstance(value, str):
            value = tuple(part.strip() for part in value.split(","))
        value = value if value is None or isinstance(value, list | tuple) else (value,)
        # pydantic would read 1_0 and 1.0 too
        if whole and any(isinstance(one, str) and whole_number(one) is None for one in value or ()):
            raise PydanticCustomError("int_parsing", "give whole numbers")
        return value


PLACE, COMMAS, REPEATED = Shell(place=True), Shell(commas=True), Shell()


class Request(BaseModel):
    """Raises InputError for a value that a field does not take."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    way_on: ClassVar[str] = "the same command starts again"
    """What goes on with a command that was stopped."""

    def __init__(self, **values: Any) -> None:
        fields = type(self).model_fields
        try:
            super().__init__(**{name: _at_home(value, fields.get(name)) for name, value in values.items()})
        except ValidationError as error:
            raise InputError(self._fault(error.errors()[0])) from None

    @classmethod
    def _fault(cls, error: Any) -> str:
        name, *_ = map(str, error["loc"])
        if error["type"] in ("missing", "extra_forbidden"):
            how = "needs" if error["type"] == "missing" else "does not know"
            return f"{cls.verb()} {how} {name!r}: its parameters are {', '.join(cls.model_fields)}."
        wanted = error.get("ctx", {}).get("expected") or error["msg"][0].lower() + error["msg"][1:]
        wanted = "give whole numbers" if error["type"] == "int_parsing" else wanted
        wanted = f"use {wanted.replace(chr(39), '')}" if "expected" in error.get("ctx", {}) else wanted
        return f"{option(name, cls.model_fields[name])} {error['input']!r}: {wanted}."

    def look(self) -> None:
        """Raises what can be told of it before anything heavy is imported or loaded."""

    @classmethod
    def verb(cls) -> str:
        return cls.__name__.removesuffix("Request").lower()

    @property
    def command(self) -> str:
        """The command line that asks the same; what has no name of its own stands there as what it holds. Left out is
        what only says how to treat what stands in the folder, and who does the work."""
        words, options = ["isotrace", self.verb()], []
        for name, field in type(self).model_fields.items():
            value, how = getattr(self, name), shell(field)
            if name in ("overwrite", "resume", "workers", "backend", "partition"):
                continue
            if isinstance(value, type(field.default)) and value == field.default:  # a table has no one truth
                continue
            several = value if isinstance(value, tuple) else (value,)
            column = getattr(self, "column", None) if name == "data" else None
            texts = [_written(one, column) for one in several]
            texts = [",".join(texts)] if how.commas else texts
            if how.place:
                words += texts
            elif isinstance(value, bool):
                options.append(option(name if value else f"no_{name}", field))
            else:
                options += [word for text in texts for word in (option(name, field), text)]
        return shlex.join([*words, *options])

    def settings(self, kind: type[T]) -> T:
        """The dataclass `kind` from the fields it shares with the request: its `n_controls` is `controls` here."""
        shared = {field.name: field.name.removeprefix("n_") for field in fields(cast(Any, kind))}
        return kind(**{name: getattr(self, own) for name, own in shared.items() if own in type(self).model_fields})


class OnSubject(Request):
    """What runs a subject."""

    subject: Annotated[Loaded, PLACE]
    """bundled:molm, pypi:rxnfp/bert_pretrained, hf:org/name or a folder."""
    domain: str | None = None
    """What tokens stand for, where the subject does not say."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")
    """auto (a GPU where there is one), cpu, cuda or cuda:1."""
    subject_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the subject computes in; trace, circuit and annotate need float32."""

    def look(self) -> None:
        super().look()
        if isinstance(self.subject, str | Path):
            from isotrace.subjects.sources.source import look

            look(str(self.subject))
        if self.domain is not None:
            from isotrace.domains.domain import domain_of

            domain_of(self.domain)


class Seeded(Request):
    seed: Seed = 0
    """Seed of every random choice."""


class InFolder(Request):
    overwrite: bool = False
    """Replace another command's run in --out."""


class OnDictionary(OnSubject, InFolder):
    """What runs a subject with a dictionary of it on sequences."""

    dictionary: Annotated[Loaded, PLACE]
    """bundled:molm-clt, hf:org/name or a folder."""
    data: Data
    column: Column = None

    def look(self) -> None:
        super().look()
        from isotrace.dictionaries.config import dictionary_folder

        several = self.dictionary if isinstance(self.dictionary, tuple) else (self.dictionary,)
        for one in several:
            if isinstance(one, str | Path) and not str(one).startswith("hf:"):
                dictionary_folder(one)
        look_at(self.data, self.column)


def look_at(data: Any, column: str | None, **options: str | None) -> None:
    """Raises InputError for a file of sequences that is not there, cannot be read as one, or lacks a column that one of
    the `options` names; a large one is left to the verb, so that it is read once."""
    if not isinstance(data, str | Path) or str(data) == "-":
        return
    if os.path.isfile(data) and os.path.getsize(data) > LOOKED_AT:
        return
    from isotrace.datasets.inputs import read_inputs
    from isotrace.datasets.reading.cells import column_of

    rows, _ = read_inputs(data, column=column)
    for name, wanted in options.items():
        if wanted is not None:
            column_of(rows, wanted, f"--{name}")


def shell(field: "FieldInfo") -> Shell:
    return next((one for one in field.metadata if isinstance(one, Shell)), Shell())


def _at_home(value: Any, field: "FieldInfo | None") -> Any:
    """A `~` in front of a place means a home folder, as it does to a shell, which does not see all of them."""
    kinds = set(map(str, _parts(field.annotation))) if field else set()
    if not kinds & {str(Path), str(Any)}:
        return value
    if isinstance(value, str | Path):
        return type(value)(expanded(str(value)))
    if isinstance(value, tuple | list) and str(tuple) in kinds:
        return tuple(_at_home(one, field) for one in value)
    return value


def _parts(kind: Any) -> Iterator[Any]:
    yield get_origin(kind) or kind
    for part in get_args(kind)[: 1 if get_origin(kind) is Annotated else None]:
        yield from _parts(part)


def option(name: str, field: "FieldInfo") -> str:
    """`--name`, as typed."""
    return shell(field).name or f"--{name.replace('_', '-')}"


def _written(value: Any, column: str | None) -> str:
    if isinstance(value, str | int | float | Path):
        return str(value)
    from isotrace.verbs.loading import named

    return str(named(value, column))


def verb(kind: type[R]) -> Callable[[Callable[[R, Progress], T]], Callable[..., T]]:
    """Makes `compute(request, progress)` a function that takes the fields of the request, by place as long as they are
    needed, or a request; and `progress`, see `shown`."""

    def decorate(compute: Callable[[R, Progress], T]) -> Callable[..., T]:
        places = []
        for name, field in kind.model_fields.items():
            if field.is_required() or name == "data":
                places.append(name)
            if name == "data" and not field.is_required():
                break

        @wraps(compute)
        def call(*given: Any, progress: Progress | bool | None = None, **fields: Any) -> T:
            if len(given) == 1 and isinstance(given[0], kind):
                given[0].look()
                return compute(given[0], shown(progress))
            if len(given) > len(places):
                raise InputError(f"{kind.verb()} takes {', '.join(places)} by place, the others by name.")
            request = kind(**dict(zip(places, given, strict=False)), **fields)
            request.look()
            return compute(request, shown(progress))

        signature = _signature(kind, places)
        described = [f"{name}: {kind.model_fields[name].description}" for name in [*signature.parameters][:-1]]
        described.append("progress: True or False; left out, it is shown where somebody watches. Or a function.")
        call.__doc__ = "\n".join([cleandoc(compute.__doc__ or ""), "", *described])
        vars(call).update(__signature__=signature, request=kind)
        return cast("Callable[..., T]", call)

    return decorate


def _signature(kind: type[Request], places: list[str]) -> Signature:
    ordered = [*places, *(name for name in kind.model_fields if name not in places)]
    parameters = []
    for name in ordered:
        field = kind.model_fields[name]
        how = Parameter.POSITIONAL_OR_KEYWORD if name in places else Parameter.KEYWORD_ONLY
        default = Parameter.empty if field.is_required() else field.default
        parameters.append(Parameter(name, how, default=default, annotation=field.annotation))
    parameters.append(Parameter("progress", Parameter.KEYWORD_ONLY, default=None, annotation=Progress | bool | None))
    return Signature(parameters)


@dataclass(frozen=True, repr=False)
class Answer:
    """What a verb says that leaves its result in a folder: `summary` is what `--json` prints; `failure` what the
    command then ends with, where not all was well."""

    summary: dict[str, Any]
    failure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return self.summary

    def __repr__(self) -> str:
        parts = (f"{name}: {value}" for name, value in self.summary.items())
        return shortened("Answer", *parts)
