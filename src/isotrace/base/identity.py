"""What a thing is: as one hash, of its content and its settings, never where it lies or what it is called, and as JSON.
Also what computes it: versions and hardware.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from datetime import date
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any, Protocol, runtime_checkable

import numpy as np

PACKAGES = ("isotrace", "torch", "transformers", "rdkit", "numpy")


@runtime_checkable
class Identified(Protocol):
    """`content()` is all that numbers made with the object depend on, as plain data, arrays and tensors. It leaves
    out settings at their default, so that a setting added later does not make everything another."""

    def content(self) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """An input of a run that has an identity: how it was named, and what it is."""

    name: str
    identity: str

    @classmethod
    def of(cls, name: object, thing: Any) -> "Source":
        return cls(str(name), identity(thing))


def identity(obj: Any) -> str:
    """sha256 in hex of plain data, arrays, tensors, dataclasses, `Identified` things, and the content of files
    and folders (`Path`; names inside a folder count, its own does not).

    Type, shape and dtype count as well as values; the order of a mapping's keys does not. Raises TypeError for
    anything else, OSError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    _feed(digest, obj)
    return digest.hexdigest()


def is_tensor(obj: Any) -> bool:
    """Whether it is one of torch's, which is not imported for that: without it there is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(obj, torch.Tensor)


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes. Raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_PLAIN = {str, int, bool, type(None)}


def to_jsonable(obj: Any) -> Any:
    """`obj` in JSON's own types. NaN and ±inf become null, arrays and tensors nested lists, dataclasses objects.

    Raises TypeError for anything whose JSON form is not obvious (bytes, complex numbers, tables, callables).
    """
    kind = type(obj)  # exactly one of JSON's own, as nearly everything is: a page has a million of them
    if kind in _PLAIN:
        return obj
    if kind is float:
        return obj if math.isfinite(obj) else None
    if kind is list:
        return _listed(obj)
    if kind is dict:
        keys = obj if set(map(type, obj)) <= {str} else map(_key, obj)
        return dict(zip(keys, _listed([*obj.values()]), strict=True))
    if isinstance(obj, Enum):
        return to_jsonable(obj.value)
    if isinstance(obj, int | str):
        return int(obj) if isinstance(obj, int) else str(obj)
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, np.generic | np.ndarray) or is_tensor(obj):
        return to_jsonable(obj.tolist())
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: to_jsonable(getattr(obj, field.name)) for field in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {_key(key): to_jsonable(value) for key, value in obj.items()}
    if isinstance(obj, set | frozenset):
        return [to_jsonable(value) for value in sorted(obj)]
    if isinstance(obj, list | tuple):
        return [to_jsonable(value) for value in obj]
    if isinstance(obj, PurePath):
        return str(obj)
    if isinstance(obj, date):
        return obj.isoformat()
    raise TypeError(f"{type(obj).__name__} has no JSON form: convert it first.")


def _listed(values: list[Any]) -> list[Any]:
    kinds = set(map(type, values))
    if kinds <= _PLAIN or (kinds == {float} and all(map(math.isfinite, values))):
        return [*values]
    return [value if type(value) in _PLAIN else to_jsonable(value) for value in values]


def dumps(obj: Any, *, indent: int | None = None) -> str:
    """JSON text of `to_jsonable(obj)`, keys in the order given, no NaN; what UTF-8 does not write is escaped."""
    text = json.dumps(to_jsonable(obj), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace").decode()


def _key(key: Any) -> str:
    plain = to_jsonable(key)
    if not isinstance(plain, str | int) or isinstance(plain, bool):
        raise TypeError(f"{key!r} is no JSON key: use text or integers.")
    return str(plain)


def _feed(digest: Any, obj: Any) -> None:
    """Every part is fed with its kind and length in front, so that no two things run into the same bytes."""
    match obj:
        case None | bool() | int() | float() | str() | Enum():
            _bytes(digest, type(obj).__name__, repr(obj).encode())
        case bytes():
            _bytes(digest, "bytes", obj)
        case np.generic():
            _feed(digest, np.asarray(obj))
        case np.ndarray() if obj.dtype.kind in "OUS":
            _feed(digest, ["array", obj.shape, obj.ravel().tolist()])
        case np.ndarray():
            flat = np.ascontiguousarray(obj).reshape(-1).view(np.uint8)
            _bytes(digest, f"array {obj.dtype.str} {obj.shape}", flat)
        case _ if is_tensor(obj):
            import torch

            flat = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            _bytes(digest, f"tensor {obj.dtype} {tuple(obj.shape)}", flat.numpy())
        case Path():
            files = [obj] if obj.is_file() else sorted(file for file in obj.rglob("*") if file.is_file())
            named = {"" if file == obj else file.relative_to(obj).as_posix(): sha256_file(file) for file in files}
            if not named and not obj.is_dir():
                raise FileNotFoundError(2, "No such file or directory", str(obj))
            _feed(digest, named)
        case Mapping():
            pairs = sorted((identity(key), key, value) for key, value in obj.items())
            _feed(digest, ["mapping", *(part for _, key, value in pairs for part in (key, value))])
        case list() | tuple():
            _bytes(digest, f"list {len(obj)}", b"")
            for part in obj:
                _feed(digest, part)
        case set() | frozenset():
            _feed(digest, ["set", *sorted(identity(part) for part in obj)])
        case _ if isinstance(obj, Identified) and not isinstance(obj, type):
            _feed(digest, obj.content())
        case _ if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
            fields = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)}
            _feed(digest, [type(obj).__name__, fields])
        case _:
            raise TypeError(f"{type(obj).__name__} has no identity: give it a method `content`.")


def _bytes(digest: Any, kind: str, data: Any) -> None:
    digest.update(f"{kind}:{len(data)}:".encode())
    digest.update(data)


def versions() -> dict[str, str | None]:
    """Installed versions; null for isotrace itself when it runs from a source tree that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def hardware() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}
