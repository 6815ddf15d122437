"""A config filled in for a subject, and a fresh dictionary of it."""

from typing import Any

import torch

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.registry import ARCHITECTURES
from isotrace.dictionaries.saving import width_at
from isotrace.subjects.heads.pooled import usual_layers
from isotrace.subjects.subject import Subject


def configure(subject: Subject, name: str, **given: Any) -> DictionaryConfig:
    """Config of architecture `name` on `subject`: all layers (at pooled hookpoints the last), its usual hookpoints,
    TopK, unless `given` says else.

    `n_features` must be given. A crosslayer transcoder without `window` reaches every layer above. Raises
    DictionaryError naming a key that does not exist or a value that does not fit.
    """
    cls = ARCHITECTURES[name]
    sites = [given.get("hookpoint_in", cls.default_in), given.get("hookpoint_out", cls.default_out)]
    layers = tuple(given["layers"] if "layers" in given else usual_layers(subject, sites))
    if any(layer >= subject.n_layers for layer in layers):
        raise DictionaryError(f"layers {layers}: {subject.source} has layers 0 to {subject.n_layers - 1}.")
    usual: dict[str, Any] = {
        "activation": "topk",
        "d_in": width_at(subject, layers, sites[0]),
        "d_out": width_at(subject, layers, sites[1]),
        "hookpoint_in": cls.default_in,
        "hookpoint_out": cls.default_out,
        "window": len(layers) if name == "crosslayer" else 1,
        **cls.usual,
    }
    if "options" in usual:
        given["options"] = usual["options"] | given.get("options", {})
    try:
        config = DictionaryConfig(**usual | given | {"architecture": name, "layers": layers})
    except (ValueError, TypeError) as error:  # pydantic's ValidationError is a ValueError
        errors = getattr(error, "errors", None)
        first = errors()[0] if errors else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise DictionaryError(f"dictionary settings: {where + ': ' if where else ''}{reason}.") from error
    cls.check(config)
    return config


def build(config: DictionaryConfig, seed: int) -> Dictionary:
    """A freshly initialised dictionary; the same config and seed give the same weights."""
    dictionary = ARCHITECTURES[config.architecture](config)
    dictionary.initialise(torch.Generator().manual_seed(seed))
    return dictionary
