"""Adapters of peft: a folder with `adapter_config.json`, that changes another model and is merged into it on load."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from warnings import catch_warnings, simplefilter

from isotrace.base.errors import SubjectError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KINDS: dict[str, Literal["sequence", "token"]] = {"SEQ_CLS": "sequence", "TOKEN_CLS": "token"}
"""Task of an adapter → kind of the head that goes with it."""


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def settings(folder: Path, source: str) -> dict[str, Any]:
    """What the adapter says of itself. Raises SubjectError for a damaged file, and for weights that are missing or
    pickled."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SubjectError(f"{CONFIG} of {source!r} is no JSON object: save the adapter again.")
    if not (folder / WEIGHTS).is_file():
        raise SubjectError(f"{source!r} holds {CONFIG}, but no {WEIGHTS}: save the adapter again with save_pretrained.")
    return found


def base_of(folder: Path, source: str) -> str | Path:
    """Where the model is that it changes: in the same folder, else the folder that its settings name, as seen from it
    or from here, else that source or name on the hub. Raises SubjectError where none is named or there."""
    if (folder / "config.json").is_file() and any(path.name != WEIGHTS for path in folder.glob("*.safetensors")):
        return folder
    named = settings(folder, source).get("base_model_name_or_path")
    if not named:
        raise SubjectError(
            f"{CONFIG} of {source!r} names no base_model_name_or_path: write there which model it is of."
        )
    if named.partition(":")[0] in ("bundled", "pypi", "hf"):
        return named
    for place in (folder / named, Path(named)):
        if place.is_dir():
            return place
    if Path(named).is_absolute() or named.count("/") != 1 or named.startswith("."):
        raise SubjectError(
            f"{source!r} is an adapter of {named!r}, which is not here: write its folder into {CONFIG} "
            "(base_model_name_or_path), or lay the adapter into that folder."
        )
    return f"hf:{named}"


@contextmanager
def alone(folder: Path) -> Iterator[Path]:
    """The model in `folder` without an adapter that lies beside it, which transformers would attach by itself."""
    if not is_adapter(folder):
        yield folder
        return
    with TemporaryDirectory() as place:
        for path in folder.iterdir():
            if path.is_file() and path.name not in (CONFIG, WEIGHTS):
                os.symlink(path.resolve(), Path(place) / path.name)
        yield Path(place)


def weights_of(folder: Path) -> dict[str, Any]:
    """Name in the model → tensor, of the adapter's own weights."""
    from safetensors.torch import load_file

    return {key.removeprefix("base_model.model."): value for key, value in load_file(folder / WEIGHTS).items()}


def require_peft(source: str) -> None:
    """Raises SubjectError without the package."""
    if find_spec("peft") is None:
        raise SubjectError(
            f"{source!r} is an adapter, and peft, which merges it, is not here: pip install 'isotrace[peft]'."
        )


def merged(model: Any, folder: Path, source: str) -> Any:
    """`model` with the adapter of `folder` merged into its weights.

    Raises SubjectError for an adapter of another model, whose weights have no place in this one, and for a kind of
    adapter that is no change of weights.
    """
    require_peft(source)
    import peft  # pyright: ignore[reportMissingImports]  # an extra
    from peft.utils import (  # pyright: ignore[reportMissingImports]
        get_peft_model_state_dict,
        load_peft_weights,
        set_peft_model_state_dict,
    )

    with catch_warnings():
        simplefilter("ignore")  # that keys are missing, which is checked below, and what peft calls in transformers
        config = peft.PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        if config.is_prompt_learning:
            raise SubjectError(
                f"{source!r} is an adapter of the type {config.peft_type}, which is no change of weights."
            )
        other = f"{source!r} is an adapter of another model than {type(model).__name__} of its base"
        try:
            wrapped = peft.get_peft_model(model, config)
        except ValueError as error:
            raise SubjectError(f"{other}: {str(error).splitlines()[0][:200]}") from error
        state, places = load_peft_weights(str(folder), device="cpu"), get_peft_model_state_dict(wrapped)
        for key in sorted({*state, *places}):
            here, there = (None if key not in one else tuple(one[key].shape) for one in (state, places))
            if here != there:
                raise SubjectError(f"{other}: {key!r} is {here or 'missing'} in it, {there or 'missing'} in the model.")
        set_peft_model_state_dict(wrapped, state)
        return wrapped.merge_and_unload()
