"""Other tools' files: weights as safetensors or pickled by torch, settings as JSON or YAML."""

import json
import pickle
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml  # a dependency of huggingface-hub and of transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from isotrace.base.errors import DictionaryError
from isotrace.base.files import write_whole


def folders(config: str, weights: str, *paths: Path) -> list[Path]:
    """Folders with files of both names: those given, or those in them."""
    found: list[Path] = []
    for path in paths:
        found += [path] if (path / weights).is_file() else sorted(p.parent for p in path.glob(f"*/{weights}"))
    return [folder for folder in found if (folder / config).is_file()]


def safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DictionaryError(f"{path} cannot be read ({_line(error)}): get it again.") from error


def pickled(path: Path) -> dict[str, Any]:
    """A `.pt` or `.ckpt` file. Nothing is unpickled but tensors, plain containers and argparse's Namespace, in which
    Lightning keeps hyper-parameters; a file with anything else is refused."""
    try:
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise DictionaryError(
            f"{path} is damaged, or holds Python objects beside its weights ({_line(error)[:80]}): get it again, or "
            "save its state dict as safetensors."
        ) from error
    if not isinstance(content, dict):
        raise DictionaryError(f"{path} holds a {type(content).__name__}, not a state dict: give another file.")
    return content


def weights(path: Path) -> dict[str, Any]:
    return safetensors(path) if path.suffix == ".safetensors" else pickled(path)


def mapping(path: Path) -> dict[str, Any]:
    """A JSON or YAML file that holds one object."""
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DictionaryError(f"{path} cannot be read ({_line(error)}): get it again.") from error
    if not isinstance(content, dict):
        raise DictionaryError(f"{path} holds no object: get it again.")
    return content


def write(folder: Path, mappings: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """JSON and YAML files, and weights as `.safetensors` or `.pt`, into `folder`. Raises RunError."""
    for name, content in mappings.items():
        text = json.dumps(content, indent=2) if name.endswith("json") else yaml.safe_dump(content, sort_keys=False)
        write_whole(folder / name, (text.rstrip("\n") + "\n").encode())
    for name, state in tensors.items():
        owned = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
        if name.endswith(".pt"):
            write_whole(folder / name, partial(torch.save, owned))
        else:
            write_whole(folder / name, save(owned))


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
