"""InterPLM (Simon & Zou 2024; source of October 2025), read only: a state dict of an autoencoder on ESM-2.

Published as `layer_{n}/ae_normalized.pt` or `ae_unnormalized.pt`, runs as `ae.pt`; layer n is hidden_states[n], what
block n − 1 puts out (the last one after the final norm, which is no hookpoint of a layer). Kinds by their keys: ReLU:
`bias [d]` (subtracted and added), `encoder.weight [F, d]`, `encoder.bias`, `decoder.weight [d, F]`; tied ReLU:
`decoder.bias` for `bias`; JumpReLU adds `threshold [F]` to that; TopK and BatchTopK: `b_dec`, `k`, `threshold ()`,
the same keys for both. `activation_rescale_factor [F]` divides features for analysis, reconstruction left as it is.
`normalize_to_sqrt_d` scales every token to norm √d, which has no equal here.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.interop import files, sites
from isotrace.dictionaries.interop.foreign import Foreign, Hints, Layer, assemble, get
from isotrace.dictionaries.interop.formats import dictionary_learning

PUBLISHED = ("ae_normalized.pt", "ae_unnormalized.pt")


def declares(path: Path) -> bool:
    return path.name in PUBLISHED or any((path / name).is_file() for name in PUBLISHED)


def read(paths: Sequence[Path], hints: Hints) -> Foreign:
    """Files, or folders with one. Several of the same shape become one dictionary. Raises DictionaryError."""
    given = [path if path.is_file() else _file(path) for path in paths]
    notes: list[str] = []
    layers = [_layer(files.pickled(file), notes) for file in given]
    matches = [re.fullmatch(r"layer_(\d+)", file.resolve().parent.name, re.ASCII) for file in given]
    # hidden_states[0] is the embedding, so layer_{n} is what block n − 1 puts out
    numbers = sites.numbers([int(m[1]) - 1 if m and int(m[1]) > 0 else None for m in matches])
    if hints.n_layers is not None and hints.n_layers - 1 in (hints.layers or numbers or ()):
        raise DictionaryError("InterPLM's last layer is taken after the final norm, which is no hookpoint of a layer.")
    notes.append("hidden_states[n] is read as the output of block n − 1")
    return assemble(layers, numbers, ("layers.{}.resid_post", None), hints, notes, autoencoder=True)


def _file(folder: Path) -> Path:
    found = [folder / name for name in (*PUBLISHED, "ae.pt") if (folder / name).is_file()]
    if len(found) != 1:
        raise DictionaryError(f"{folder} holds {len(found)} of {', '.join(PUBLISHED)}, ae.pt: give one of the files.")
    return found[0]


def _layer(state: dict[str, Tensor], notes: list[str]) -> Layer:
    if bool(state.get("normalize_to_sqrt_d", False)):
        raise DictionaryError("this dictionary scales every token to norm √d (normalize_to_sqrt_d): it has no equal.")
    if "bias" in state:
        layer = dictionary_learning.layer("AutoEncoder", state, None, notes)
    elif "k" in state:
        if float(get(state, "threshold")) >= 0:
            raise DictionaryError(
                "TopK and BatchTopK have the same keys, and this one has a threshold: it could be either. Rename the "
                "folder's file to ae.pt, write config.json with trainer.dict_class, and use --from dictionary_learning."
            )
        layer = dictionary_learning.layer("AutoEncoderTopK", state, None, notes)
        notes.append("read as TopK: its threshold was never trained, as BatchTopK's would be")
    else:
        layer = dictionary_learning.layer("AutoEncoderNew", state, None, notes)
        if "threshold" in state:
            layer = replace(layer, activation="jumprelu", threshold=get(state, "threshold", len(layer.b_enc)))
    if "activation_rescale_factor" in state:
        factor = get(state, "activation_rescale_factor", len(layer.b_enc))
        if layer.activation == "topk":
            if not torch.allclose(factor, torch.ones_like(factor)):
                notes.append("activation_rescale_factor was dropped: topk ranks features before it")
        elif (factor <= 0).any():
            raise DictionaryError("activation_rescale_factor is not positive everywhere: it cannot be folded.")
        else:
            layer = layer.scaled(1 / factor)
            notes.append("activation_rescale_factor was folded: features are those of normalize_features=True")
    return layer
