"""InterProt (Adams et al. 2025; source of May 2025), read only: a TopK autoencoder on ESM-2's residual stream.

`w_enc [d, F]`, `w_dec [F, d]`, `b_enc [F]`, `b_pre [d]`, in safetensors or, after the prefix `sae_model.`, in a
Lightning checkpoint. Tokens are standardised, (x − mean) / (std + 1e-5) with the sample standard deviation, b_pre is
subtracted before the encoder and added after the decoder, and mean and std are given back. k is in no file but a
Lightning checkpoint's hyper-parameters; the published ones have it in their papers, so give --k.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.interop import files
from isotrace.dictionaries.interop.foreign import Foreign, Hints, Layer, assemble, get

PREFIX = "sae_model."
KEYS = {"w_enc", "w_dec", "b_enc", "b_pre"}


def declares(path: Path) -> bool:
    if not path.is_file() or path.suffix not in (".safetensors", ".ckpt", ".pt"):
        return False
    content = files.weights(path)
    return {name.removeprefix(PREFIX) for name in content.get("state_dict", content)} >= KEYS


def read(paths: Sequence[Path], hints: Hints) -> Foreign:
    """Files of the same shape become one dictionary. Raises DictionaryError."""
    layers = []
    for path in paths:
        content = files.weights(path)
        state = {name.removeprefix(PREFIX): value for name, value in content.get("state_dict", content).items()}
        k = hints.k or getattr(content.get("hyper_parameters", {}).get("args"), "k", None)
        if k is None:
            raise DictionaryError(f"{path} does not hold k, the number of active features: give --k.")
        W_enc = get(state, "w_enc", None, None)
        d, n = W_enc.shape
        b_pre = get(state, "b_pre", d)
        layer = Layer("topk", W_enc, get(state, "b_enc", n), get(state, "w_dec", n, d), b_pre, k)
        layers.append(replace(layer.less(b_pre), token_normalization="standardize"))
    notes = ["b_pre was folded into b_enc and kept as b_dec"]
    return assemble(layers, None, ("layers.{}.resid_post", None), hints, notes, autoencoder=True)
