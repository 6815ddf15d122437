"""sparsify, `eai-sparsify` (checked with 1.3.3): one folder per hookpoint with `cfg.json` and `sae.safetensors`.

`encoder.weight [F, d]`, `encoder.bias [F]`, `W_dec [F, d]`, `b_dec [d]`, `W_skip [d, d]` (x W_skipᵀ). The activation
is TopK after ReLU (groupmax has no equal here). Unless `transcode`, b_dec is subtracted before the encoder. A run
folder holds one such folder per hookpoint, whose name *is* the hookpoint: `layers.3` is what block 3 puts out,
`layers.3.mlp` the MLP of that block: its output, or from its input to its output when `transcode`.
SAELens transposes `W_dec` when it imports these files, and fails or is wrong: convert here instead.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.interop import files, sites
from isotrace.dictionaries.interop.foreign import (
    Foreign,
    Hints,
    Layer,
    assemble,
    get,
    layers_of,
    note_unknown,
    note_unread,
)

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
SETTINGS = ("activation", "expansion_factor", "normalize_decoder", "num_latents", "k", "multi_topk", "skip_connection",
            "transcode", "d_in", "signed")  # fmt: skip
READ = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


def declares(path: Path) -> bool:
    return any("n_targets" not in files.mapping(folder / CONFIG) for folder in files.folders(CONFIG, WEIGHTS, path))


def site(name: str, transcode: bool) -> tuple[int | None, str | None, str | None]:
    """(layer, hookpoint read, hookpoint written) of a folder's name; None where it is not known."""
    match = re.fullmatch(r"layers\.(\d+)(\.mlp)?", name, re.ASCII)
    if match is None:
        layer, known = sites.split(name)
        return layer, known, None if transcode else known
    if match[2]:
        return int(match[1]), "layers.{}.mlp_in" if transcode else "layers.{}.mlp_out", "layers.{}.mlp_out"
    return int(match[1]), None if transcode else "layers.{}.resid_post", None if transcode else "layers.{}.resid_post"


def hookpoint_folder(dictionary: Dictionary, s: int) -> str:
    """The folder's name, sparsify's where it has one for the hookpoint."""
    config = dictionary.config
    reads, writes = (h.removeprefix("layers.{}.") for h in (config.hookpoint_in, config.hookpoint_out))
    if (reads, writes) in (("mlp_in", "mlp_out"), ("mlp_out", "mlp_out")):
        return f"layers.{config.layers[s]}.mlp"
    return f"layers.{config.layers[s]}" if (reads, writes) == ("resid_post", "resid_post") else config.reads[s]


def read(paths: Sequence[Path], hints: Hints) -> Foreign:
    """A run folder, or folders of hookpoints of the same kind, become one dictionary. Raises DictionaryError."""
    found = files.folders(CONFIG, WEIGHTS, *paths)
    if not found:
        raise DictionaryError(f"{paths[0]} holds no {CONFIG} with {WEIGHTS}: give a sparsify folder.")
    configs = [files.mapping(folder / CONFIG) for folder in found]
    kinds = {bool(c.get("transcode")) for c in configs}
    if len(kinds) > 1:
        raise DictionaryError("autoencoders and transcoders cannot be one dictionary: convert them apart.")
    transcode = kinds.pop()
    notes = [] if transcode else ["b_dec, subtracted before the encoder, was folded into b_enc"]
    named = [site(folder.resolve().name, transcode) for folder in found]
    layers = [_layer(c, files.safetensors(folder / WEIGHTS), notes) for c, folder in zip(configs, found, strict=True)]
    hookpoints = sites.agree([n[1] for n in named]), sites.agree([n[2] for n in named])
    return assemble(layers, sites.numbers([n[0] for n in named]), hookpoints, hints, notes, autoencoder=not transcode)


def _layer(config: dict[str, Any], state: dict, notes: list[str]) -> Layer:
    if config.get("activation", "topk") != "topk":
        raise DictionaryError(f"sparsify activation {config['activation']!r} has no equal here: only topk has.")
    if config.get("signed"):
        raise DictionaryError("features of this dictionary may be negative (signed), which has no equal here.")
    note_unknown(config, SETTINGS, notes)
    note_unread(state, (*READ, *(["W_skip"] if config.get("skip_connection") else [])), notes)
    weight = get(state, "encoder.weight", None, None)
    n, d = weight.shape
    W_skip = get(state, "W_skip", d, d).T if config.get("skip_connection") else None
    b_dec = get(state, "b_dec", d)
    layer = Layer(
        "topk", weight.T, get(state, "encoder.bias", n), get(state, "W_dec", n, d), b_dec, config["k"], W_skip
    )
    return layer if config.get("transcode") else layer.less(b_dec)


def write(dictionary: Dictionary, folder: Path, source: str) -> list[str]:
    """A run folder with one folder per hookpoint. Raises DictionaryError, RunError."""
    config = dictionary.config
    require(dictionary, "sparsify")
    if config.window > 1:
        raise DictionaryError("sparsify has no crosslayer transcoder: write clt_training or circuit_tracer.")
    transcode = config.hookpoint_in != config.hookpoint_out
    for s, layer in enumerate(layers_of(dictionary)):
        shifted = layer if transcode else layer.less(-layer.b_dec)
        state = {"encoder.weight": layer.W_enc.T, "encoder.bias": shifted.b_enc}
        state |= {"W_dec": layer.W_dec, "b_dec": layer.b_dec}
        if layer.W_skip is not None:
            state["W_skip"] = layer.W_skip.T
        files.write(folder / hookpoint_folder(dictionary, s), {CONFIG: settings(dictionary)}, {WEIGHTS: state})
    return ["the nested sizes are lost"] if config.prefixes else []


def require(dictionary: Dictionary, name: str) -> None:
    """Raises DictionaryError for what neither sparsify nor clt-training can hold."""
    config = dictionary.config
    if config.activation != "topk" or config.token_normalization != "none" or config.d_in != config.d_out:
        raise DictionaryError(
            f"{name} holds topk dictionaries with d_in = d_out and no token normalisation, not this "
            f"{config.activation} one: write saelens or dictionary_learning."
        )


def settings(dictionary: Dictionary) -> dict[str, Any]:
    """`cfg.json`."""
    config = dictionary.config
    return {
        "activation": "topk",
        "expansion_factor": 32,  # not used where num_latents is given
        "normalize_decoder": False,
        "num_latents": config.n_features,
        "k": config.k,
        "multi_topk": False,
        "skip_connection": config.skip,
        "transcode": config.hookpoint_in != config.hookpoint_out,
        "d_in": config.d_in,
    }
