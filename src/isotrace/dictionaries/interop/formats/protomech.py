"""ProtoMech (Tsui et al. 2026; source of May 2026), read only: transcoders from mlp_in to mlp_out of all layers of
ESM-2.

A Lightning checkpoint: `state_dict` with the prefix `clt.` (crosslayer, windowed or not) or `plt.` (per layer),
beside the weights of ESM-2, which are left out, and `hyper_parameters.args.k`. `encoders.i.weight [F, d]`, optionally
`encoders.i.bias`, which is added to `b_enc.i [F]`; `b_pre.i [d]`, subtracted before the encoder and added after
decoding; `decoders.{source}_{target} [F, d]`, or `decoders.i` per layer. TopK with ReLU. Tokens are standardised as
by InterProt, with the target's own mean and deviation given back, by every plt, but only by a clt of exactly 6 layers
(`skip_ln`).
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.interop import files
from isotrace.dictionaries.interop.foreign import Foreign, Hints, Layer, assemble, get

SITES = ("layers.{}.mlp_in", "layers.{}.mlp_out")
NORMALISED_DEPTH = 6


def declares(path: Path) -> bool:
    if not path.is_file() or path.suffix not in (".safetensors", ".ckpt", ".pt"):
        return False
    content = files.weights(path)
    return any(name in content.get("state_dict", content) for name in ("clt.b_pre.0", "plt.b_pre.0"))


def read(paths: Sequence[Path], hints: Hints) -> Foreign:
    """One checkpoint. Raises DictionaryError."""
    if len(paths) > 1:
        raise DictionaryError("a ProtoMech checkpoint holds all layers: give one file.")
    content = files.weights(paths[0])
    whole: dict[str, Tensor] = content.get("state_dict", content)
    crosslayer = "clt.b_pre.0" in whole
    prefix = "clt." if crosslayer else "plt."
    state = {name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)}
    k = hints.k or getattr(content.get("hyper_parameters", {}).get("args"), "k", None)
    if k is None:
        raise DictionaryError(f"{paths[0]} does not hold k, the number of active features: give --k.")
    n_layers = sum(re.fullmatch(r"b_pre\.\d+", name) is not None for name in state)
    if n_layers == 0:
        raise DictionaryError(f"{paths[0]} holds no clt.b_pre.0 or plt.b_pre.0: it is no ProtoMech checkpoint.")
    window = max((t - s + 1 for s, t in _pairs(state)), default=1) if crosslayer else 1
    normalised = not crosslayer or n_layers == NORMALISED_DEPTH
    layers = []
    for s in range(n_layers):
        weight = get(state, f"encoders.{s}.weight", None, None)
        n, d = weight.shape
        b_pre, b_enc = get(state, f"b_pre.{s}", d), get(state, f"b_enc.{s}", n)
        if f"encoders.{s}.bias" in state:
            b_enc = b_enc + get(state, f"encoders.{s}.bias", n)
        names = [f"{s}_{t}" for t in range(s, min(s + window, n_layers))] if crosslayer else [str(s)]
        W_dec = torch.cat([get(state, f"decoders.{name}", n, d) for name in names], 1)
        layers.append(Layer("topk", weight.T, b_enc, W_dec, b_pre, k).less(b_pre))
    if normalised:
        layers = [replace(layer, token_normalization="standardize") for layer in layers]
    notes = [f"b_pre was folded into b_enc and kept as b_dec; tokens are {'' if normalised else 'not '}standardised"]
    return assemble(layers, range(n_layers), SITES, hints, notes, autoencoder=False, window=window)


def _pairs(state: dict[str, Tensor]) -> list[tuple[int, int]]:
    matches = [re.fullmatch(r"decoders\.(\d+)_(\d+)", name, re.ASCII) for name in state]
    return [(int(m[1]), int(m[2])) for m in matches if m]
