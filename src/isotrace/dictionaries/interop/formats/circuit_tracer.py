"""circuit-tracer (checked with 0.5.0): `config.yaml` and safetensors for all layers from 0 up.

transcoder_set: `layer_{i}.safetensors` with `W_enc [F, d]`, `W_dec [F, d]`, `b_enc [F]`, `b_dec [d]`, optional
`activation_function.threshold [F]`, `W_skip [d, d]` (x W_skipᵀ). cross_layer_transcoder: `W_enc_{i}.safetensors` with
`W_enc_{i} [F, d]`, `b_enc_{i}`, `b_dec_{i}`, optional `threshold_{i}`, and `W_dec_{i}.safetensors` with `W_dec_{i}
[F, n_layers − i, d]`, slot j for layer i + j. `feature_input_hook` and `feature_output_hook` are TransformerLens
names without the block. A threshold makes it JumpReLU, h · [h > θ] without ReLU; otherwise it is ReLU. `activation:
topk` with `k` occurs in configs, but the loader of 0.5.0 ignores it and applies ReLU.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.interop import files, sites
from isotrace.dictionaries.interop.foreign import Foreign, Hints, Layer, assemble, get, layers_of, note_unknown

CONFIG = "config.yaml"
SET, CLT = "transcoder_set", "cross_layer_transcoder"
SETTINGS = ("activation", "k", "feature_input_hook", "feature_output_hook", "model_kind", "model_name", "scan",
            "transcoders")  # fmt: skip


def declares(path: Path) -> bool:
    return (path / CONFIG).is_file() and files.mapping(path / CONFIG).get("model_kind") in (SET, CLT)


def read(paths: Sequence[Path], hints: Hints) -> Foreign:
    """A set of transcoders or a crosslayer transcoder. Raises DictionaryError."""
    path = paths[0]
    if len(paths) > 1 or not declares(path):
        raise DictionaryError(f"{path} has no {CONFIG} with a model_kind: give one circuit-tracer folder.")
    config = files.mapping(path / CONFIG)
    notes: list[str] = []
    note_unknown(config, SETTINGS, notes)
    if config["model_kind"] == CLT:
        layers = _crosslayer(path)
    else:
        layers = [_transcoder(files.safetensors(file), config, notes) for file in _files(path, config)]
    for layer in layers:
        if layer.threshold is not None and (layer.threshold < 0).any():
            raise DictionaryError("a threshold is negative: h · [h > θ] without ReLU has no equal here.")
    hooks = tuple(sites.from_lens(config.get(key)) for key in ("feature_input_hook", "feature_output_hook"))
    window = len(layers) if config["model_kind"] == CLT else 1
    numbers = range(len(layers))
    return assemble(layers, numbers, (hooks[0], hooks[1]), hints, notes, autoencoder=False, window=window)


def _files(path: Path, config: dict[str, Any]) -> list[Path]:
    if "transcoders" in config:
        named = [str(name) for name in config["transcoders"]]
        if remote := [name for name in named if name.startswith("hf://")]:
            raise DictionaryError(
                f"{CONFIG} names files on the hub ({remote[0]}): download them, and list their paths."
            )
        for name in named:
            if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
                raise DictionaryError(f"{CONFIG} names {name!r}, outside its folder: move it there, and list its name.")
        return [path / name for name in named]
    return _numbered(path, "layer")


def _numbered(path: Path, stem: str) -> list[Path]:
    """`stem_{i}.safetensors` in order. Raises DictionaryError unless they count from 0 without a gap."""
    found = sorted(int(m[1]) for f in path.iterdir() if (m := re.fullmatch(rf"{stem}_(\d+)\.safetensors", f.name)))
    if not found or found != list(range(len(found))):
        raise DictionaryError(f"{path} holds {stem} files {found}, which must count from 0 without a gap: get all.")
    return [path / f"{stem}_{i}.safetensors" for i in found]


def _transcoder(state: dict[str, Tensor], config: dict[str, Any], notes: list[str]) -> Layer:
    weight = get(state, "W_enc", None, None)
    n, d = weight.shape
    threshold = None
    if "activation_function.threshold" in state:
        threshold = get(state, "activation_function.threshold", None).expand(n)
    activation, k = "relu" if threshold is None else "jumprelu", None
    declared = config.get("activation", activation)
    if declared == "topk" and threshold is None:
        activation, k = "topk", config.get("k")
        notes.append("topk is taken from config.yaml, with ReLU; circuit-tracer 0.5.0 itself would load it as ReLU")
    elif declared not in (activation, "jump_relu"):
        raise DictionaryError(f"{CONFIG} says activation {declared!r}, the weights {activation}: one is wrong.")
    skip = get(state, "W_skip", d, d).T if "W_skip" in state else None
    W_dec, b_dec = get(state, "W_dec", n, d), get(state, "b_dec", d)
    return Layer(activation, weight.T, get(state, "b_enc", n), W_dec, b_dec, k, skip, threshold)


def _crosslayer(path: Path) -> list[Layer]:
    encoders, layers = _numbered(path, "W_enc"), []
    for i, file in enumerate(encoders):
        state = files.safetensors(file) | files.safetensors(path / f"W_dec_{i}.safetensors")
        weight = get(state, f"W_enc_{i}", None, None)
        n, d = weight.shape
        threshold = get(state, f"threshold_{i}", n) if f"threshold_{i}" in state else None
        W_dec = get(state, f"W_dec_{i}", n, len(encoders) - i, d).flatten(1)
        activation = "relu" if threshold is None else "jumprelu"
        biases = get(state, f"b_enc_{i}", n), get(state, f"b_dec_{i}", d)
        layers.append(Layer(activation, weight.T, biases[0], W_dec, biases[1], threshold=threshold))
    return layers


def write(dictionary: Dictionary, folder: Path, source: str) -> list[str]:
    """A folder as its hub loader reads it. Raises DictionaryError, RunError."""
    config, notes = dictionary.config, []
    if config.architecture == "sae" or config.d_in != config.d_out or config.token_normalization != "none":
        raise DictionaryError("circuit-tracer holds transcoders with d_in = d_out and no token normalisation.")
    if config.layers != tuple(range(config.n_layers)):
        raise DictionaryError(f"circuit-tracer needs all layers from 0, not {config.layers}: train the others too.")
    if config.activation in ("topk", "gated"):
        raise DictionaryError(
            f"circuit-tracer's loader knows relu and jumprelu only, and would read {config.activation} as relu: train "
            "with batchtopk or jumprelu."
        )
    crosslayer = config.window > 1
    if crosslayer and config.skip:
        raise DictionaryError("circuit-tracer drops the skip path of a crosslayer transcoder: it cannot be written.")
    about = {
        "model_name": source,
        "model_kind": CLT if crosslayer else SET,
        "feature_input_hook": sites.to_lens(config.hookpoint_in),
        "feature_output_hook": sites.to_lens(config.hookpoint_out),
        "scan": source,
    }
    weights: dict[str, dict[str, Tensor]] = {}
    for s, layer in enumerate(layers_of(dictionary)):
        end = f"_{s}" if crosslayer else ""
        state = {f"W_enc{end}": layer.W_enc.T, f"b_enc{end}": layer.b_enc, f"b_dec{end}": layer.b_dec}
        if layer.threshold is not None:
            # ours has a ReLU before the threshold, which a threshold of at least 0 stands for
            name = f"threshold_{s}" if crosslayer else "activation_function.threshold"
            state[name] = layer.threshold.expand(config.n_features).clamp(min=0)
        if crosslayer:
            blocks = [layer.W_dec.unflatten(1, (-1, config.d_out))]
            beyond = config.n_layers - s - len(config.targets(s))
            blocks.append(torch.zeros(config.n_features, beyond, config.d_out))
            weights[f"W_dec_{s}.safetensors"] = {f"W_dec_{s}": torch.cat(blocks, 1)}
            weights[f"W_enc_{s}.safetensors"] = state
        else:
            state |= {"W_dec": layer.W_dec} | ({} if layer.W_skip is None else {"W_skip": layer.W_skip.T})
            weights[f"layer_{s}.safetensors"] = state
    files.write(folder, {CONFIG: about}, weights)
    if config.activation == "batchtopk":
        notes.append(f"batchtopk became jumprelu with its learned threshold: k {config.k} is lost")
    if crosslayer and config.window < config.n_layers:
        notes.append(f"targets beyond the window {config.window} were filled with zeros")
    if config.prefixes:
        notes.append("the nested sizes are lost")
    return notes
