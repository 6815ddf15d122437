"""dictionary_learning (checked with 0.1.0): a folder with `config.json` and `ae.pt`, a state dict. Autoencoders only.

`config.json` → `trainer.dict_class` decides, keys alone do not (TopK and BatchTopK have the same): AutoEncoder: `bias
[d]`, subtracted before and added after, `encoder.weight [F, d]`, `encoder.bias`, `decoder.weight [d, F]`;
AutoEncoderNew: `decoder.bias` instead of `bias`; AutoEncoderTopK, BatchTopKSAE: `b_dec [d]`, subtracted, `k`,
`threshold` (that of TopK is not used; −1 is an untrained one); MatryoshkaBatchTopKSAE: `W_enc [d, F]`, `W_dec [F,
d]`, `b_enc`, `b_dec` (subtracted), `group_sizes`; GatedAutoEncoder: `decoder_bias` (subtracted), `gate_bias`,
`mag_bias`, `r_mag`; JumpReluAutoEncoder: `W_enc [d, F]`, `W_dec [F, d]`, `b_enc`, `b_dec`, `threshold [F]`, b_dec not
subtracted. Its `AutoEncoder.from_pretrained` rescales features to decoders of norm 1, which the file does not; we do
not either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.interop import files, sites
from isotrace.dictionaries.interop.foreign import Foreign, Hints, Layer, assemble, gated, get, layers_of, ungated

CONFIG, WEIGHTS = "config.json", "ae.pt"
FOLDED = "the decoder bias, subtracted before the encoder, was folded into b_enc"


def declares(path: Path) -> bool:
    return any(
        "dict_class" in files.mapping(folder / CONFIG).get("trainer", {})
        for folder in files.folders(CONFIG, WEIGHTS, path)
    )


def read(paths: Sequence[Path], hints: Hints) -> Foreign:
    """Several folders of the same kind and shape become one dictionary over several layers. Raises DictionaryError."""
    found = files.folders(CONFIG, WEIGHTS, *paths)
    trainers = [files.mapping(folder / CONFIG).get("trainer", {}) for folder in found]
    if not found or not all("dict_class" in trainer for trainer in trainers):
        raise DictionaryError(f"{paths[0]} holds no {CONFIG} with a dict_class and {WEIGHTS}: give a trainer's folder.")
    notes: list[str] = []
    layers = [
        layer(t["dict_class"], files.pickled(f / WEIGHTS), t.get("k"), notes)
        for t, f in zip(trainers, found, strict=True)
    ]
    named = [sites.split(t.get("submodule_name")) for t in trainers]
    numbers = sites.numbers(
        [t.get("layer") if isinstance(t.get("layer"), int) else n for t, (n, _) in zip(trainers, named, strict=True)]
    )
    return assemble(layers, numbers, (sites.agree([s for _, s in named]), None), hints, notes, autoencoder=True)


def layer(dict_class: str, state: Mapping[str, Tensor], k: int | None, notes: list[str]) -> Layer:
    """From a state dict. Raises DictionaryError for a class or key not known."""
    if dict_class in ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder"):
        W_enc = get(state, "W_enc", None, None)
        d, n = W_enc.shape
        W_dec, b_enc, b_dec = get(state, "W_dec", n, d), get(state, "b_enc", n), get(state, "b_dec", d)
        if dict_class == "JumpReluAutoEncoder":
            return Layer("jumprelu", W_enc, b_enc, W_dec, b_dec, threshold=get(state, "threshold", n))
        notes.append(FOLDED)
        sizes = tuple(accumulate(state["group_sizes"].tolist()))
        result = Layer("batchtopk", W_enc, b_enc, W_dec, b_dec, k, threshold=get(state, "threshold"))
        return replace(result, prefixes=sizes if len(sizes) > 1 else ()).less(b_dec)
    if dict_class not in ("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "GatedAutoEncoder"):
        raise DictionaryError(f"dictionary class {dict_class!r} has no equal here: it cannot be represented.")
    weight = get(state, "encoder.weight", None, None)
    n, d = weight.shape
    W_dec = get(state, "decoder.weight", d, n).T
    if dict_class == "AutoEncoderNew":
        return Layer("relu", weight.T, get(state, "encoder.bias", n), W_dec, get(state, "decoder.bias", d))
    notes.append(FOLDED)
    if dict_class == "GatedAutoEncoder":
        bias, r_mag = get(state, "decoder_bias", d), get(state, "r_mag", n)
        gates = get(state, "gate_bias", n), get(state, "mag_bias", n)
        return gated(weight.T, *gates, r_mag, W_dec, bias).less(bias)
    bias = get(state, "bias" if dict_class == "AutoEncoder" else "b_dec", d)
    result = Layer("relu", weight.T, get(state, "encoder.bias", n), W_dec, bias).less(bias)
    if dict_class == "AutoEncoder":
        return result
    if k is None:
        k = int(state["k"]) if "k" in state else None
    if dict_class == "AutoEncoderTopK":
        return replace(result, activation="topk", k=k)
    return replace(result, activation="batchtopk", k=k, threshold=get(state, "threshold"))


def write(dictionary: Dictionary, folder: Path, source: str) -> list[str]:
    """One folder per layer, named by its hookpoint where there are several. Raises DictionaryError, RunError."""
    config = dictionary.config
    if config.architecture != "sae" or config.token_normalization != "none":
        raise DictionaryError("dictionary_learning holds autoencoders without token normalisation: write saelens.")
    for s, layer in enumerate(layers_of(dictionary)):
        dict_class, state = _state(layer)
        trainer: dict[str, Any] = {"dict_class": dict_class, "activation_dim": config.d_in}
        trainer |= {"dict_size": config.n_features, "layer": config.layers[s], "lm_name": source}
        trainer |= {"submodule_name": config.reads[s]} | ({"k": config.k} if config.k else {})
        place = folder if config.n_layers == 1 else folder / config.reads[s]
        files.write(place, {CONFIG: {"trainer": trainer, "buffer": {}}}, {WEIGHTS: state})
    return ["the nested sizes are lost"] if config.prefixes and config.activation != "batchtopk" else []


def _state(layer: Layer) -> tuple[str, dict[str, Tensor]]:
    W_enc, W_dec, b_dec = layer.W_enc, layer.W_dec, layer.b_dec
    shifted = layer.less(-b_dec)
    if layer.activation == "jumprelu":
        assert layer.threshold is not None
        plain = {"W_enc": W_enc, "b_enc": layer.b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": layer.threshold}
        return "JumpReluAutoEncoder", plain
    if layer.activation == "gated":
        W_gate, b_gate, b_mag, r_mag = ungated(shifted)
        state = {"decoder_bias": b_dec, "r_mag": r_mag, "gate_bias": b_gate, "mag_bias": b_mag}
        return "GatedAutoEncoder", state | {"encoder.weight": W_gate.T, "decoder.weight": W_dec.T}
    weights = {"encoder.weight": W_enc.T, "decoder.weight": W_dec.T}
    if layer.activation == "relu":
        return "AutoEncoderNew", weights | {"encoder.bias": layer.b_enc, "decoder.bias": b_dec}
    threshold = torch.tensor(-1.0) if layer.threshold is None else layer.threshold
    numbers = {"k": torch.tensor(layer.k, dtype=torch.int), "threshold": threshold}
    if layer.activation == "batchtopk" and layer.prefixes:
        sizes = torch.tensor([b - a for a, b in zip((0, *layer.prefixes), layer.prefixes, strict=False)])
        state = {"W_enc": W_enc, "b_enc": shifted.b_enc, "W_dec": W_dec, "b_dec": b_dec, "group_sizes": sizes}
        return "MatryoshkaBatchTopKSAE", numbers | state
    name = "AutoEncoderTopK" if layer.activation == "topk" else "BatchTopKSAE"
    return name, numbers | weights | {"encoder.bias": shifted.b_enc, "b_dec": b_dec}
