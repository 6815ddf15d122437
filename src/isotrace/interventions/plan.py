"""An intervention is data: which components, where, and what becomes of them. A plan is several, in order.

Plans compose (`one | other` does what `with subject.edited(one), subject.edited(other)` does), are equal and hashed
by content, and are saved as JSON with their tensors beside it. Dictionaries are named by identity and given again when
a plan is read.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.files import write_whole
from isotrace.base.identity import identity
from isotrace.interventions.components import COMPONENTS, Components
from isotrace.interventions.what import (
    Add,
    AddShare,
    Affine,
    Along,
    Apply,
    Clamp,
    Inject,
    Normed,
    Only,
    Scale,
    Set,
    Then,
    To,
    What,
)
from isotrace.interventions.where import Marked, Nodes, Not, Rows, Select, Stacks, Tokens, Units, Where
from isotrace.interventions.writers import Moved, Writers
from isotrace.subjects.subject import Batch, Subject

FORMAT, FORMAT_VERSION = "isotrace-plan", 1
EVERYWHERE = Select()
PARTS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(Select, Nodes, Rows, Not, Units, Tokens, Marked, Stacks),
        *(Set, Add, AddShare, Scale, Affine, Along, Clamp, To, Only, Then, Normed, Inject),
    )
}
"""What can be read from a file, beside components."""


@dataclass(frozen=True, eq=False)
class Intervention:
    """`components`, at the nodes `where`, become `what`."""

    components: Components
    what: What
    where: Where = EVERYWHERE

    @property
    def saved(self) -> bool:
        """It is data, with no function in it."""
        return not isinstance(self.what, Apply)

    def edit(self, layer: int, values: Tensor) -> Tensor:
        mask = self.where.mask(layer, values)
        if mask is None or (new := self.what.new(layer, values)) is values:
            return values
        return torch.where(mask[..., None], new, values)

    def applied(self, subject: Subject) -> AbstractContextManager[None]:
        """Within the context `subject` runs under it."""
        what = self.what.begun()
        edit = dataclasses.replace(self, what=what).edit
        if not (isinstance(what, Only) and isinstance(self.components, Writers)):
            return self.components.edited(subject, edit, self.where.meant)

        def moved(layer: int, values: Tensor) -> Tensor | Moved:
            mask = self.where.mask(layer, values)
            return values if mask is None else what.moved(layer, values, mask)

        return self.components.moved(subject, moved, self.where.meant)


@dataclass(frozen=True, eq=False)
class Plan:
    """Interventions in the order in which they are applied at a site; the empty plan changes nothing."""

    interventions: tuple[Intervention, ...] = ()

    @classmethod
    def of(cls, *interventions: "Intervention | Plan") -> "Plan":
        parts = (p.interventions if isinstance(p, Plan) else (p,) for p in interventions)
        return cls(tuple(chain.from_iterable(parts)))

    def __or__(self, other: "Plan | Intervention") -> "Plan":
        return Plan.of(self, other)

    def __iter__(self) -> Iterator[Intervention]:
        return iter(self.interventions)

    def __len__(self) -> int:
        return len(self.interventions)

    def on(self, subject: Subject, batch: Batch) -> "Plan":
        """With atoms, residues and kinds of tokens resolved to the tokens of `batch`. Raises as `Units.on` and
        `Tokens.on`."""
        found: dict[Tokens, Marked | Stacks] = {}  # edits of many layers mean the same tokens as a rule

        def resolved(where: Where) -> Where:
            if not isinstance(where, Tokens):
                return where.on(subject, batch)
            every = dataclasses.replace(where, layers=None)
            if every not in found:
                found[every] = every.on(subject, batch)
            return found[every].limited(where.layers)

        return Plan(tuple(dataclasses.replace(i, where=resolved(i.where)) for i in self))

    @contextmanager
    def applied(self, subject: Subject) -> Iterator[None]:
        """Within the context `subject` runs under this plan, in this thread; contexts nest."""
        with ExitStack() as stack:
            for one in self:
                stack.enter_context(one.applied(subject))
            yield

    def to_dict(self) -> dict[str, Any]:
        """Plain data, tensors and dictionaries by the hash of their content. Raises InputError for functions."""
        return self._encoded({})

    @property
    def id(self) -> str:
        """sha256 of the content."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def save(self, folder: str | Path) -> Path:
        """Write plan.json and, where there are tensors, tensors.safetensors. Raises InputError for functions."""
        folder, tensors = Path(folder), {}
        record = self._encoded(tensors)
        if tensors:
            write_whole(folder / "tensors.safetensors", save(tensors))
        write_whole(folder / "plan.json", (json.dumps(record, indent=2) + "\n").encode())
        return folder

    @classmethod
    def load(cls, folder: str | Path, dictionaries: Iterable[Any] = ()) -> "Plan":
        """Raises InputError for a folder without a plan, or a dictionary that is not among those given."""
        folder = Path(folder)
        try:
            record = json.loads((folder / "plan.json").read_bytes())
            path = folder / "tensors.safetensors"
            stored = load_file(path) if path.is_file() else {}
            # in memory of their own: how a tensor is aligned shows in the last bit of a product
            tensors = {name: tensor.clone() for name, tensor in stored.items()}
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} holds no plan ({error}): give the folder that Plan.save wrote.") from None
        return cls.from_dict(record, dictionaries, tensors)

    @classmethod
    def from_dict(
        cls, record: Mapping[str, Any], dictionaries: Iterable[Any] = (), tensors: Mapping[str, Tensor] | None = None
    ) -> "Plan":
        """Raises InputError for unknown kinds and keys, and for what is named but not given."""
        if (record.get("format"), record.get("format_version")) != (FORMAT, FORMAT_VERSION):
            raise InputError(f"this is no plan of format {FORMAT} {FORMAT_VERSION}: save it again.")
        known = named(dictionaries, tensors or {})
        try:
            return cls(tuple(Intervention(**decoded(row, known)) for row in record["interventions"]))
        except (KeyError, TypeError) as error:
            raise InputError(f"this plan is damaged ({error}): save it again.") from None

    def _encoded(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        names = ("components", "where", "what")
        rows = [{name: encoded(getattr(i, name), tensors) for name in names} for i in self]
        return {"format": FORMAT, "format_version": FORMAT_VERSION, "interventions": rows}


def named(dictionaries: Iterable[Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Both by the names that they have in plain data."""
    found = {f"dictionary:{identity(d)}": d for d in dictionaries}
    return found | {f"tensor:{name}": tensor for name, tensor in tensors.items()}


def encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Plain data; tensors are put into `tensors` by the hash of their content, dictionaries are named by theirs."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        owned = value.detach().cpu().contiguous().clone()
        digest = hashlib.sha256(f"{owned.dtype} {tuple(owned.shape)}".encode())
        digest.update(owned.reshape(-1).view(torch.uint8).numpy().tobytes())
        tensors[digest.hexdigest()] = owned
        return f"tensor:{digest.hexdigest()}"
    if isinstance(value, tuple | list):
        return [encoded(part, tensors) for part in value]
    if isinstance(value, Mapping):
        return {"kind": "mapping", "items": [[k, encoded(v, tensors)] for k, v in value.items()]}
    if isinstance(value, Apply):
        raise InputError("a plan with a function in it cannot be saved: use Set, Add, Scale, Clamp or To.")
    if isinstance(value, Components | Where | What):
        kind = value.name if isinstance(value, Components) else type(value).__name__
        fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()  # pyright: ignore
        return {"kind": kind} | {f.name: encoded(getattr(value, f.name), tensors) for f in fields}
    return f"dictionary:{identity(value)}"


def decoded(value: Any, known: Mapping[str, Any]) -> Any:
    """What `encoded` made plain data of; `known`: see `named`. Raises InputError for what is named but not known."""
    if isinstance(value, str) and value.startswith(("tensor:", "dictionary:")):
        if value not in known:
            raise InputError(f"{value[:24]}… was not given: give all dictionaries that it was made with.")
        return known[value]
    if isinstance(value, list):
        return tuple(decoded(part, known) for part in value)
    if not isinstance(value, Mapping):
        return value
    fields = {key: part for key, part in value.items() if key != "kind"}
    if value.get("kind") == "mapping":
        return {key: decoded(part, known) for key, part in fields["items"]}
    found = {key: decoded(part, known) for key, part in fields.items()}
    if "kind" not in value:
        return found
    kind = value["kind"]
    if kind not in PARTS and kind not in COMPONENTS:
        raise InputError(f"a plan knows no {kind!r}: {', '.join((*PARTS, *COMPONENTS))}.")
    return (PARTS[kind] if kind in PARTS else COMPONENTS[kind])(**found)
