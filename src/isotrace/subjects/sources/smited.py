"""SMI-TED as its authors' training saved it: one pickle `smi-ted-Light_40.pt` beside `bert_vocab_curated.txt`.

It holds settings, random states and the weights, which alone say all sizes: the random features of a head are as wide
as the head. They are written again as the authors' package for the hub has them.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isotrace.base.errors import SubjectError

if TYPE_CHECKING:
    from torch import Tensor

PATTERNS = ("smi-ted*.pt",)
BLOCK = "smi_ted.encoder.blocks.layers"


def files(folder: Path) -> list[Path]:
    """None beside a safetensors file, which transformers reads."""
    return [] if any(folder.glob("*.safetensors")) else sorted(path for p in PATTERNS for path in folder.glob(p))


def convert(source: str, files: Sequence[Path], config: Path, into: Path) -> None:
    """See `layouts.Layout`; a config.json is not read."""
    from safetensors.torch import save_file

    from isotrace.subjects.families.native.smiles_tokenizer import LISTS  # which takes torch
    from isotrace.subjects.sources.source import write_record

    if len(files) > 1:
        names = " and ".join(path.name for path in files)
        raise SubjectError(f"{source!r} holds two checkpoints, {names}: give each a folder of its own.")
    words = next((path for name in LISTS if (path := files[0].parent / name).is_file()), None)
    if words is None:
        raise SubjectError(f"{source!r} has no {LISTS[1]}: put it beside {files[0].name}.")
    weights = {f"smi_ted.{name}": tensor.contiguous() for name, tensor in _read(source, files[0]).items()}
    (into / "config.json").write_text(json.dumps(configured(source, weights), indent=2, sort_keys=True) + "\n")
    save_file(weights, into / "model.safetensors", {"format": "pt"})
    shutil.copyfile(words, into / LISTS[0])
    write_record(into, "molecule")


def _read(source: str, path: Path) -> "dict[str, Tensor]":
    """The weights, without running code of the pickle. Fine-tuned models keep encoder and decoder apart."""
    import numpy as np
    import torch

    # the state of NumPy's random numbers, which older versions of it name otherwise
    arrays: Any = np.empty(0).__reduce__()[0]
    known = [(arrays, "numpy.core.multiarray._reconstruct"), (arrays, "numpy._core.multiarray._reconstruct"),
             np.ndarray, np.dtype, type(np.dtype("uint32"))]  # fmt: skip
    try:
        with torch.serialization.safe_globals(known):
            saved = torch.load(path, map_location="cpu", weights_only=True)
        found = saved["MODEL_STATE"] if "MODEL_STATE" in saved else saved["state_dict"]
        if isinstance(found, list):
            parts = zip(("encoder", "decoder"), found, strict=False)
            found = {f"{part}.{name}": tensor for part, state in parts for name, tensor in state.items()}
        return {name: tensor for name, tensor in found.items() if not name.endswith("inv_freq")}
    except Exception as error:  # a pickle and a zip fail in many ways
        raise SubjectError(f"cannot load {source}: {str(error).splitlines()[0]}") from error


def configured(source: str, weights: "dict[str, Tensor]") -> dict[str, Any]:
    """config.json, from the shapes of the weights. Raises SubjectError where those that tell them are missing."""
    needed = ("smi_ted.encoder.tok_emb.weight", f"{BLOCK}.0.attention.inner_attention.feature_map.omega",
              "smi_ted.decoder.autoencoder.encoder.fc1.weight", f"{BLOCK}.0.linear1.weight")  # fmt: skip
    if missing := [name for name in needed if name not in weights]:
        raise SubjectError(f"{source} lacks {missing[0]!r}: it is no SMI-TED that is known here.")
    words, features, pool, mlp = (tuple(weights[name].shape) for name in needed)
    layers = {match[1] for name in weights if (match := re.match(rf"{re.escape(BLOCK)}\.(\d+)\.", name))}
    return {
        "model_type": "materials.smi-ted",
        "architectures": ["MaterialsSmiTedHFModel"],
        "vocab_size": words[0],
        "n_embd": words[1],
        "n_layer": len(layers),
        "n_head": words[1] // features[0],
        "num_feats": features[1],
        "intermediate_size": mlp[0],
        "max_len": pool[1] // words[1],
    }
