"""SAELens (checked with 6.54.12): a folder with `cfg.json` and `sae_weights.safetensors`, one hookpoint each.

`W_enc [d, F]`, `W_dec [F, d_out]`, `b_enc [F]`, `b_dec [d_out]`; jumprelu adds `threshold [F]`, gated has `b_gate`,
`b_mag`, `r_mag [F]` for `b_enc`, skip transcoders `W_skip [d_out, d]` (x W_skipᵀ). `apply_b_dec_to_input` subtracts
b_dec before the encoder. BatchTopK and Matryoshka are saved as jumprelu with one constant threshold, without k.
`rescale_acts_by_decoder_norm` (topk) multiplies features by ‖W_dec‖ before choosing and divides after.
`normalize_activations` layer_norm is (x − mean) / (std + 1e-5) per token with the sample standard deviation, given
back after decoding by autoencoders only. `metadata.hook_name` is a TransformerLens name (`blocks.3.hook_mlp_out`).
Before version 6 the metadata lay at the top level, and `activation_fn(_str)` could make a standard one a topk.
"""

from collections.abc import Sequence
from dataclasses import replace
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
    gated,
    get,
    layers_of,
    note_unknown,
    ungated,
)

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
AUTOENCODERS = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
TRANSCODERS = {
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}


SETTINGS = (
    "architecture", "d_in", "d_sae", "d_out", "k", "dtype", "device", "metadata", "apply_b_dec_to_input",
    "normalize_activations", "reshape_activations", "rescale_acts_by_decoder_norm", "activation_fn",
    "activation_fn_str", "activation_fn_kwargs", "finetuning_scaling_factor",
    # of files from before version 6: what is in `metadata` today
    "model_name", "model_class_name", "model_from_pretrained_kwargs", "hook_name", "hook_name_out", "hook_layer",
    "hook_layer_out", "hook_head_index", "prepend_bos", "seqpos_slice", "context_size", "dataset_path",
    "dataset_trust_remote_code", "sae_lens_training_version", "neuronpedia_id",
)  # fmt: skip


def read(paths: Sequence[Path], hints: Hints) -> Foreign:
    """Several folders of the same shape become one dictionary over several layers. Raises DictionaryError."""
    found = files.folders(CONFIG, WEIGHTS, *paths)
    if not found:
        raise DictionaryError(f"{paths[0]} holds no {CONFIG} with {WEIGHTS}: give an SAELens folder.")
    configs = [files.mapping(folder / CONFIG) for folder in found]
    notes: list[str] = []
    layers = [_layer(c, folder, notes) for c, folder in zip(configs, found, strict=True)]
    metadata = [c | (c.get("metadata") or {}) for c in configs]
    reads = [sites.split(m.get("hook_name")) for m in metadata]
    writes = [sites.split(m.get("hook_name_out"))[1] for m in metadata]
    kinds = {c.get("architecture") in TRANSCODERS for c in configs}
    if len(kinds) > 1:
        raise DictionaryError("autoencoders and transcoders cannot be one dictionary: convert them apart.")
    if any(c.get("architecture") == "jumprelu" for c in configs):
        notes.append("SAELens saves batchtopk and matryoshka as jumprelu: k and nested sizes, if any, are not known")
    hookpoints = sites.agree([site for _, site in reads]), sites.agree(writes)
    numbers = sites.numbers([layer for layer, _ in reads])
    return assemble(layers, numbers, hookpoints, hints, notes, autoencoder=not kinds.pop())


def _layer(config: dict[str, Any], folder: Path, notes: list[str]) -> Layer:
    note_unknown(config, SETTINGS, notes)
    name = config.get("architecture", "standard")
    activation = (AUTOENCODERS | TRANSCODERS).get(name)
    if activation is None:
        raise DictionaryError(f"SAELens architecture {name!r} has no equal here: {', '.join(AUTOENCODERS)} and …")
    if config.get("reshape_activations", "none") != "none" or config.get("finetuning_scaling_factor"):
        raise DictionaryError(f"{folder} reshapes hook_z or has a finetuning scale: it cannot be represented here.")
    old = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    k = config.get("k")
    if activation == "relu" and old == "topk":
        activation, k = "topk", (config.get("activation_fn_kwargs") or {}).get("k")
    elif old != "relu" and activation != "topk":
        raise DictionaryError(f"activation {old!r} of {folder} has no equal here: it cannot be represented.")
    transcoder = name in TRANSCODERS
    state = files.safetensors(folder / WEIGHTS)
    W_enc = get(state, "W_enc", None, None)
    d, n = W_enc.shape
    W_dec = get(state, "W_dec", n, config["d_out"] if transcoder and "d_out" in config else None)
    b_dec = get(state, "b_dec", W_dec.shape[1])
    if activation == "gated":
        layer = gated(W_enc, get(state, "b_gate", n), get(state, "b_mag", n), get(state, "r_mag", n), W_dec, b_dec)
    else:
        threshold = get(state, "threshold", n) if activation == "jumprelu" else None
        layer = Layer(activation, W_enc, get(state, "b_enc", n), W_dec, b_dec, threshold=threshold)
    if not transcoder and config.get("apply_b_dec_to_input", True):
        layer = layer.less(b_dec)  # gated too: the gate is a function of h, which moves along
        notes.append("b_dec, subtracted before the encoder, was folded into b_enc")
    if "skip" in name:
        layer = replace(layer, W_skip=get(state, "W_skip", W_dec.shape[1], d).T)
    if activation == "topk":
        layer = replace(layer, k=k)
        if config.get("rescale_acts_by_decoder_norm"):
            layer = layer.scaled(layer.W_dec.norm(dim=1))
            notes.append("decoder norms, by which topk ranked, were folded into the encoder")
    return _normalised(layer, config, folder, transcoder, notes)


def _normalised(layer: Layer, config: dict[str, Any], folder: Path, transcoder: bool, notes: list[str]) -> Layer:
    how = config.get("normalize_activations") or "none"
    if how == "none":
        return layer
    if how == "layer_norm" and not transcoder:
        notes.append("layer_norm became token_normalization standardize, the same formula")
        return replace(layer, token_normalization="standardize")
    scaler = folder / "activation_scaler.json"
    if how == "expected_average_only_in" and not transcoder and scaler.is_file():
        scale = files.mapping(scaler).get("scaling_factor")
        if isinstance(scale, int | float) and scale > 0:
            notes.append(f"the activation scale {scale:g} of {scaler.name} was folded into the weights")
            return replace(layer, W_enc=layer.W_enc * scale, W_dec=layer.W_dec / scale, b_dec=layer.b_dec / scale)
    raise DictionaryError(
        f"{folder} normalises its input by {how}, and its files do not hold the statistics as they are used: fold them "
        "in SAELens first (fold_activation_norm_scaling_factor, fold_activation_whitening)."
    )


def write(dictionary: Dictionary, folder: Path, source: str) -> list[str]:
    """One folder per layer, named by its hookpoint where there are several. Raises DictionaryError, RunError."""
    config, notes = dictionary.config, []
    transcoder = config.architecture != "sae"
    if config.window > 1:
        raise DictionaryError("SAELens has no crosslayer transcoder: write circuit_tracer or clt_training.")
    if transcoder and (config.activation in ("topk", "gated") or config.token_normalization != "none"):
        raise DictionaryError(f"SAELens has no {config.activation} or normalised transcoder: write sparsify.")
    for s, layer in enumerate(layers_of(dictionary)):
        kind = {"relu": "standard", "batchtopk": "jumprelu"}.get(layer.activation, layer.activation)
        if transcoder:
            prefix = "" if layer.activation == "relu" else "jumprelu_"
            kind = f"{prefix}{'skip_' if config.skip else ''}transcoder"
        state = {"W_enc": layer.W_enc, "W_dec": layer.W_dec, "b_enc": layer.b_enc, "b_dec": layer.b_dec}
        if layer.activation == "gated":
            del state["b_enc"]
            state["W_enc"], state["b_gate"], state["b_mag"], state["r_mag"] = ungated(layer)
        if layer.threshold is not None:
            state["threshold"] = layer.threshold.expand(config.n_features)
        if layer.W_skip is not None:
            state["W_skip"] = layer.W_skip.T
        cfg: dict[str, Any] = {"d_in": config.d_in, "d_sae": config.n_features, "dtype": "float32", "device": "cpu"}
        cfg |= {"apply_b_dec_to_input": False, "reshape_activations": "none"}
        cfg["normalize_activations"] = "none" if config.token_normalization == "none" else "layer_norm"
        cfg["metadata"] = {"model_name": source, "hook_name": _hook(config.hookpoint_in, config.layers[s])}
        cfg["architecture"] = kind
        if transcoder:
            cfg["d_out"] = config.d_out
            cfg["metadata"]["hook_name_out"] = _hook(config.hookpoint_out, config.layers[s])
        if kind == "topk":
            cfg |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
        place = folder if config.n_layers == 1 else folder / config.reads[s]
        files.write(place, {CONFIG: cfg}, {WEIGHTS: state})
    if config.activation == "batchtopk":
        notes.append(f"batchtopk became jumprelu with its learned threshold, as SAELens saves it: k {config.k} is lost")
    if config.prefixes:
        notes.append("the nested sizes are lost")
    return notes


def _hook(site: str, layer: int) -> str:
    lens = sites.to_lens(site)
    return site.format(layer) if lens == site else f"blocks.{layer}.{lens}"


def declares(path: Path) -> bool:
    return bool(files.folders(CONFIG, WEIGHTS, path))
