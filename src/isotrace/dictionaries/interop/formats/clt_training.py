"""clt-training, EleutherAI's fork of sparsify for crosslayer transcoders (source of August 2025): sparsify's folders,
with `n_targets` and more in every `cfg.json`.

Target t of source s is layer s + t, in the order of the hookpoints: `W_decs.t [F, d]`, `b_decs.t [d]`, `W_skips.t`,
`post_encs.t`, `post_enc_scales.t [F]`; `n_targets` 0 is a single target, with the names of sparsify. Sources add up:
    ŷ_T = Σ_s (a_s + post_enc [a_s > 0]) · post_enc_scale W_dec + b_dec + x_s W_skipᵀ
`normalize_io` scales the input by √d / in_norm and, at the end, the output by the target's out_norm / √d.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.interop import files, sites
from isotrace.dictionaries.interop.foreign import Foreign, Hints, Layer, assemble, get, layers_of, note_unknown
from isotrace.dictionaries.interop.formats import sparsify

CONFIG, WEIGHTS = sparsify.CONFIG, sparsify.WEIGHTS
REFUSED = {
    "signed": False,
    "coalesce_topk": "none",
    "per_source_tied": False,
    "secondary_target_tied": False,
    "activation": "topk",
}


SETTINGS = (*sparsify.SETTINGS, *REFUSED, "n_targets", "n_sources", "normalize_io", "post_encoder_scale",
            "divide_cross_layer", "dtype", "topk_coalesced", "tp_output", "train_post_encoder", "use_fp8")  # fmt: skip


def declares(path: Path) -> bool:
    return any("n_targets" in files.mapping(folder / CONFIG) for folder in files.folders(CONFIG, WEIGHTS, path))


def read(paths: Sequence[Path], hints: Hints) -> Foreign:
    """A run folder becomes one dictionary. Raises DictionaryError."""
    found = files.folders(CONFIG, WEIGHTS, *paths)
    if not found:
        raise DictionaryError(f"{paths[0]} holds no {CONFIG} with {WEIGHTS}: give a clt-training run folder.")
    coders = [(files.mapping(f / CONFIG), files.safetensors(f / WEIGHTS), f.resolve().name) for f in found]
    transcode = bool(coders[0][0].get("transcode"))
    named = [sparsify.site(name, transcode) for _, _, name in coders]
    numbers = hints.layers or sites.numbers([n[0] for n in named])
    if not numbers or len(numbers) != len(coders):
        raise DictionaryError("the folders' names do not say the layers: give --layer for each, in their order.")
    order = sorted(range(len(coders)), key=lambda i: numbers[i])
    coders, named = [coders[i] for i in order], [named[i] for i in order]
    for config, _, name in coders:
        for key, only in REFUSED.items():
            if config.get(key, only) != only:
                raise DictionaryError(f"{key} {config[key]!r} of {name} has no equal here: it cannot be represented.")
        if bool(config.get("transcode")) != transcode:
            raise DictionaryError("autoencoders and transcoders cannot be one dictionary: convert them apart.")
    targets = [int(config.get("n_targets", 0)) if transcode else 0 for config, _, _ in coders]
    window = max(1, *targets)
    if targets != [0] * len(coders) and targets != [min(window, len(coders) - s) for s in range(len(coders))]:
        raise DictionaryError(f"the layers write to {targets} targets: give the whole run folder, in layer order.")
    if window > 1 and any(config.get("divide_cross_layer") for config, _, _ in coders):
        raise DictionaryError("divide_cross_layer weighs sources by run-time counts: it cannot be represented.")
    notes: list[str] = []
    parts = [_coder(config, state, name, notes) for config, state, name in coders]
    layers = _combined(parts, transcode)
    hookpoints = sites.agree([n[1] for n in named]), sites.agree([n[2] for n in named])
    ordered = Hints((), hints.hookpoint_in, hints.hookpoint_out, hints.k, hints.n_layers)
    return assemble(layers, sorted(numbers), hookpoints, ordered, notes, autoencoder=not transcode, window=window)


def _coder(config: Mapping[str, Any], state: Mapping[str, Tensor], name: str, notes: list[str]) -> tuple[Layer, Tensor]:
    """(layer whose W_dec holds all targets and whose b_dec is unused, biases `[n_targets, d]`), with the scales of
    this layer's input and output folded in."""
    note_unknown(config, SETTINGS, notes)
    weight = get(state, "encoder.weight", None, None)
    n, d = weight.shape
    multiple = bool(config.get("transcode")) and int(config.get("n_targets", 0)) > 0
    slots = range(int(config["n_targets"]) if multiple else 1)

    def part(single: str, slot: int, *shape: int) -> Tensor:
        return get(state, f"{single}s.{slot}" if multiple else single, *shape)

    blocks, skips = [], []
    for t in slots:
        block = part("W_dec", t, n, d)
        if (f"post_encs.{t}" if multiple else "post_enc") in state and part("post_enc", t, n).any():
            raise DictionaryError(f"{name} adds post_encs to active features before decoding: it has no equal here.")
        if config.get("post_encoder_scale"):
            block = block * part("post_enc_scale", t, n)[:, None]
            notes.append("post_enc_scales were folded into the decoders")
        blocks.append(block)
        if config.get("skip_connection"):
            skips.append(part("W_skip", t, d, d).T)
    if any(skip.any() for skip in skips[1:]):
        raise DictionaryError(f"{name} has skip paths to later layers: a dictionary here has only its own layer's.")
    biases = torch.stack([part("b_dec", t, d) for t in slots])
    layer = Layer("topk", weight.T, get(state, "encoder.bias", n), torch.cat(blocks, 1), biases[0], config["k"])
    if not config.get("transcode"):
        layer = layer.less(biases[0])
        notes.append("b_dec, subtracted before the encoder, was folded into b_enc")
    scale_in = scale_out = 1.0
    if config.get("normalize_io"):
        scale_in = d**0.5 / float(get(state, "in_norm", 1))
        scale_out = float(get(state, "out_norm", 1)) / d**0.5
        notes.append("in_norm and out_norm were folded into the weights")
    skip = skips[0] * scale_in if skips else None
    # b_dec carries the output scale of this layer, until all sources of a target are added up
    return replace(layer, W_enc=layer.W_enc * scale_in, W_skip=skip, b_dec=torch.full((d,), scale_out)), biases


def _combined(parts: list[tuple[Layer, Tensor]], transcode: bool) -> list[Layer]:
    scales = [layer.b_dec for layer, _ in parts]
    totals = [torch.zeros_like(scale) for scale in scales]
    layers = []
    for s, (layer, biases) in enumerate(parts):
        for t, bias in enumerate(biases):
            totals[s + t] += bias
        W_dec = layer.W_dec * torch.cat([scales[s + t] for t in range(len(biases))])
        skip = None if layer.W_skip is None else layer.W_skip * scales[s]
        layers.append(replace(layer, W_dec=W_dec, W_skip=skip))
    return [replace(layer, b_dec=total * scale) for layer, total, scale in zip(layers, totals, scales, strict=True)]


def write(dictionary: Dictionary, folder: Path, source: str) -> list[str]:
    """A run folder with one folder per hookpoint. Raises DictionaryError, RunError."""
    config = dictionary.config
    sparsify.require(dictionary, "clt-training")
    transcode = config.hookpoint_in != config.hookpoint_out
    for s, layer in enumerate(layers_of(dictionary)):
        n_targets = len(config.targets(s)) if config.window > 1 else 0
        cfg = sparsify.settings(dictionary)
        del cfg["multi_topk"]
        cfg |= {"n_targets": n_targets, "n_sources": 0, "normalize_io": False, "coalesce_topk": "none"}
        cfg |= {"post_encoder_scale": False, "divide_cross_layer": False, "per_source_tied": False}
        shifted = layer if transcode else layer.less(-layer.b_dec)
        state = {"encoder.weight": layer.W_enc.T, "encoder.bias": shifted.b_enc}
        for t in range(max(1, n_targets)):
            end = f"s.{t}" if n_targets else ""
            state[f"W_dec{end}"] = dictionary.decoder(s, s + t)
            # the whole bias of a layer comes from its own source
            state[f"b_dec{end}"] = layer.b_dec if t == 0 else torch.zeros_like(layer.b_dec)
            state[f"post_enc{end}"] = torch.zeros(config.n_features)
            if layer.W_skip is not None:
                state[f"W_skip{end}"] = layer.W_skip.T if t == 0 else torch.zeros_like(layer.W_skip)
        files.write(folder / sparsify.hookpoint_folder(dictionary, s), {CONFIG: cfg}, {WEIGHTS: state})
    return ["the nested sizes are lost"] if config.prefixes else []
