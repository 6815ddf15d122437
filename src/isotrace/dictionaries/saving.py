"""Saving and loading dictionaries: a folder with `dictionary.json` and `weights.safetensors`."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from isotrace.activations.harvest import width
from isotrace.base.errors import DictionaryError
from isotrace.base.files import write_whole
from isotrace.base.identity import sha256_file
from isotrace.dictionaries.config import (
    FORMAT,
    FORMAT_VERSION,
    DictionaryConfig,
    DictionaryFile,
    SubjectReference,
    dictionary_folder,
)
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.registry import ARCHITECTURES
from isotrace.subjects.loading import tokenizer_hash
from isotrace.subjects.subject import Subject

FILE = TypeAdapter(DictionaryFile)
FUNCTION = ("eps", "act", "head", "position", "rope", "norm", "scal", "bias", "is_decoder")
"""Parts of the names of settings that change what a model computes with the same weights."""


def reference(subject: Subject) -> SubjectReference:
    """What a dictionary remembers of its subject."""
    return SubjectReference(
        source=subject.source,
        model_type=subject.model.config.model_type,
        n_layers=subject.n_layers,
        d_model=subject.d_model,
        weights_sha256=subject.files.weights_sha256,
        tokenizer_sha256=tokenizer_hash(subject.tokenizer),
        settings={k: v for k, v in subject.model.config.to_dict().items() if _shapes_the_function(k, v)},
    )


def _shapes_the_function(name: str, value: Any) -> bool:
    """Of a setting of a model: whether it says what is computed with the weights, as far as its name tells."""
    plain = isinstance(value, bool | int | float | str)
    return plain and "dropout" not in name and any(part in name for part in FUNCTION)


def save_dictionary(
    dictionary: Dictionary,
    folder: Path,
    subject: SubjectReference,
    *,
    dtype: torch.dtype,
    training: Mapping[str, Any],
) -> None:
    """Write the folder; weights are rounded to `dtype` first, so that what is saved is what was fingerprinted.

    Raises DictionaryError for a weight that is not finite, or not in `dtype`.
    """
    rounded = {k: v.to("cpu", dtype).contiguous() for k, v in dictionary.state_dict().items()}
    for name, value in rounded.items():
        if not torch.isfinite(value).all():
            kind = "NaN or infinity" if not torch.isfinite(dictionary.state_dict()[name]).all() else "values beyond"
            raise DictionaryError(f"{name} holds {kind} {dtype}: save in another dtype, or train again.")
    weights = save(rounded)
    write_whole(folder / "weights.safetensors", weights)
    record = DictionaryFile(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        config=dictionary.config,
        subject=subject,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        weights_dtype=str(dtype).removeprefix("torch."),  # pyright: ignore[reportArgumentType]
        fingerprint=dictionary.fingerprint(dtype),
        training=dict(training),
    )
    write_whole(folder / "dictionary.json", FILE.dump_json(record, indent=2) + b"\n")


def load_dictionary(source: str | Path, subject: Subject | None = None) -> Dictionary:
    """Load and check a dictionary; with `subject`, also check that it belongs to it, and put it on its device.

    Raises DictionaryError when the file is damaged (checksum, NaN, unknown key, wrong shape), when its
    fingerprint is not reproduced, or when the subject, layer range or site differ; the message says which.
    """
    folder = dictionary_folder(source)
    record = read_record(folder)
    if subject is not None:
        check_match(record, subject, source)
    weights = folder / "weights.safetensors"
    if not weights.is_file() or sha256_file(weights) != record.weights_sha256:
        raise DictionaryError(f"weights of {source} are missing, truncated or altered: get the dictionary again.")
    try:
        dictionary = ARCHITECTURES[record.config.architecture](record.config)
        _fill(dictionary, weights)
        found = dictionary.fingerprint()
    except (SafetensorError, RuntimeError) as error:
        raise DictionaryError(f"weights of {source} do not fit its config: {str(error).splitlines()[0]}") from error
    for name, value in dictionary.state_dict().items():
        if not torch.isfinite(value).all():
            raise DictionaryError(f"{name} of {source} holds NaN or infinity: get the dictionary again.")
    pairs = zip_longest(found, record.fingerprint, fillvalue=math.nan)
    if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in pairs):
        raise DictionaryError(f"{source} does not reproduce its fingerprint: it was made by an incompatible version.")
    dictionary = dictionary.eval().requires_grad_(False)
    dictionary.folder = folder  # what stands on its shelf is read where it is asked for, see `shelf.shelf_of`
    return dictionary if subject is None else dictionary.to(subject.device)


def _fill(dictionary: Dictionary, weights: Path) -> None:
    """The weights of a file, one tensor at a time: what was read of the file counts as memory until it is closed.
    Raises RuntimeError for other tensors than the dictionary has."""
    with safe_open(weights, "pt") as file:
        names = set(file.keys())
    if differing := names ^ dictionary.state_dict().keys():
        raise RuntimeError(f"{min(differing)} is {'unknown' if min(differing) in names else 'missing'}")
    for name in names:
        with safe_open(weights, "pt") as file:
            dictionary.load_state_dict({name: file.get_tensor(name)}, strict=False)


def read_record(folder: Path) -> DictionaryFile:
    """`dictionary.json`, validated: unknown keys, missing keys and other formats are errors."""
    path = folder / "dictionary.json"
    try:
        return FILE.validate_python(json.loads(path.read_text()))
    except (ValueError, OSError) as error:  # ValidationError, JSONDecodeError and UnicodeDecodeError are ValueErrors
        first = str(error).splitlines()[0]
        if isinstance(error, ValidationError):
            what = error.errors()[0]
            first = ".".join(map(str, what["loc"])) + ": " + what["msg"].removeprefix("Value error, ")
        raise DictionaryError(
            f"{path.name} of {folder.name} is not valid ({first}): get the dictionary again."
        ) from error


def differences(there: SubjectReference, subject: Subject) -> str:
    """In what `subject` is not the one referred to; empty where it is."""
    here = reference(subject)
    names = ("model_type", "n_layers", "d_model", "weights_sha256", "tokenizer_sha256")
    found = [f"{n} {str(getattr(there, n))[:12]} ≠ {str(getattr(here, n))[:12]}" for n in names
             if getattr(here, n) != getattr(there, n)]  # fmt: skip
    # a setting that one version of transformers writes and another does not is no difference
    found += [f"{n} {there.settings[n]} ≠ {here.settings[n]}" for n in there.settings.keys() & here.settings
              if here.settings[n] != there.settings[n]]  # fmt: skip
    return "; ".join(found)


def check_match(record: DictionaryFile, subject: Subject, source: str | Path) -> None:
    """Raises DictionaryError naming every property in which `subject` is not the one trained on."""
    if differing := differences(record.subject, subject):
        raise DictionaryError(
            f"{source} was trained on {record.subject.source}, not on {subject.source}: {differing}. "
            "Use its own subject."
        )
    config, there = record.config, 0
    if config.layers[-1] < subject.n_layers:
        there = width_at(subject, config.layers, config.hookpoint_out)
    if config.d_out != there:
        shape = f"layers {config.layers} of width {config.d_out}"
        raise DictionaryError(
            f"{source} covers {shape}, the subject has {subject.n_layers} of {there or subject.d_model}: get it again."
        )


def width_at(subject: Subject, layers: Sequence[int], site: str) -> int:
    """Of the hookpoint `site` (`layers.{}.NAME`) of these layers. One that is not there is refused where it is read."""
    if site.endswith(".neuron"):
        return width(subject, [site.format(layer) for layer in layers])
    return subject.d_model


def require_whole_mlp(config: DictionaryConfig, subject: Subject) -> None:
    """Raises DictionaryError unless the dictionary stands for every MLP of `subject`, without a skip path: what a
    trace, or fine-tuning inside the subject, needs."""
    sites = ("layers.{}.mlp_in", "layers.{}.mlp_out")
    whole = config.layers == tuple(range(subject.n_layers)) and (config.hookpoint_in, config.hookpoint_out) == sites
    if config.skip:
        raise DictionaryError(
            f"this {config.architecture} has a skip path, which writes past its features, and traces and fine-tuning "
            "follow features alone: train a transcoder or crosslayer for that."
        )
    if not whole or config.token_normalization != "none":
        raise DictionaryError(
            f"this {config.architecture} reads {config.hookpoint_in} and writes {config.hookpoint_out} of layers "
            f"{', '.join(map(str, config.layers))}: a circuit needs a "
            f"transcoder or crosslayer from mlp_in to mlp_out of all {subject.n_layers} layers."
        )
