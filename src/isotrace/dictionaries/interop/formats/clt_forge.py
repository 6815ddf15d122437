"""CLT-Forge (source of April 2026), read only: crosslayer or per-layer JumpReLU transcoders of all layers.

A folder with `clt_cfg.json` and `clt_weights.safetensors`, or under feature sharding `rank{r}_clt_weights.safetensors`
of every process, with consecutive features each. `W_enc [L, d, F]`, `b_enc [L, F]`, `log_threshold [L, F]`;
`W_dec [P, F, d]` and `b_dec [P, d]`, P = L (L + 1) / 2 pairs of source and target, source first (0→0, 0→1, …, 1→1, …),
or L without `cross_layer_decoders`. Features are h · [h > exp(log_threshold)] of the scaled input, and all biases of a
target add up:
    h_s = x_s · norm_in_s W_enc_s + b_enc_s        ŷ_t = Σ_{s ≤ t} (a_s W_dec_st + b_dec_st) / norm_out_t
`estimated_norm_scaling_factor_in`, `…_out [L]` are norm_in and norm_out; `feature_count` and `layer_mask` belong to
training. The files name no hookpoints: CLT-Forge trains from TransformerLens's `ln2.hook_normalized`, which lies before
the gain and bias of the norm (`mlp_in` lies behind them), to `hook_mlp_out`.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.interop import files
from isotrace.dictionaries.interop.foreign import Foreign, Hints, Layer, assemble, get, note_unknown

CONFIG, WEIGHTS = "clt_cfg.json", "clt_weights.safetensors"
SETTINGS = ("device", "dtype", "seed", "model_name", "debug", "d_in", "d_latent", "n_layers", "jumprelu_bandwidth",
            "jumprelu_init_threshold", "normalize_decoder", "dead_feature_window", "cross_layer_decoders",
            "context_size", "functional_loss", "l0_coefficient", "ddp", "fsdp", "feature_sharding")  # fmt: skip
SCALES = ("estimated_norm_scaling_factor_in", "estimated_norm_scaling_factor_out")
SHARDED = {"W_enc": 2, "b_enc": 1, "log_threshold": 1, "W_dec": 1}
"""Weights that shards divide among them, and the axis of the features."""
UNUSED = ("feature_count", "layer_mask")


def declares(path: Path) -> bool:
    return (path / CONFIG).is_file() and any(path.glob(f"*{WEIGHTS}"))


def read(paths: Sequence[Path], hints: Hints) -> Foreign:
    """One checkpoint folder. Raises DictionaryError."""
    path = paths[0]
    if len(paths) > 1 or not declares(path):
        raise DictionaryError(f"{path} holds no {CONFIG} with {WEIGHTS}: give one CLT-Forge checkpoint folder.")
    config, notes = files.mapping(path / CONFIG), []
    note_unknown(config, SETTINGS, notes)
    state = _weights(path, sharded=bool(config.get("feature_sharding", False)), notes=notes)
    if unknown := sorted(state.keys() - {*SHARDED, "b_dec", *SCALES, *UNUSED}):
        raise DictionaryError(f"{path} holds {', '.join(unknown[:5])}, which CLT-Forge has not: give another --from.")
    W_enc = get(state, "W_enc", config["n_layers"], config["d_in"], config["d_latent"])
    crosslayer, (L, d, n) = bool(config["cross_layer_decoders"]), W_enc.shape
    pairs = [(s, t) for s in range(L) for t in range(s, L if crosslayer else s + 1)]
    b_enc, log_threshold = get(state, "b_enc", L, n), get(state, "log_threshold", L, n)
    W_dec, b_dec = get(state, "W_dec", len(pairs), n, d), get(state, "b_dec", len(pairs), d).double()
    norm_in, norm_out = (get(state, name, L) for name in SCALES)
    for name, scale in zip(SCALES, (norm_in, norm_out), strict=True):
        if not (scale.isfinite() & (scale > 0)).all():
            raise DictionaryError(f"{name} of {path} is not positive everywhere: the file is damaged.")
    total = torch.zeros(L, d, dtype=torch.float64).index_add(0, torch.tensor([t for _, t in pairs]), b_dec)
    total = (total / norm_out[:, None].double()).float()
    layers = []
    for s in range(L):
        blocks = [W_dec[i] / norm_out[t] for i, (source, t) in enumerate(pairs) if source == s]
        encoder, threshold = W_enc[s] * norm_in[s], log_threshold[s].exp()
        layers.append(Layer("jumprelu", encoder, b_enc[s], torch.cat(blocks, 1), total[s], threshold=threshold))
    if (norm_in != 1).any() or (norm_out != 1).any():
        notes.append("the scales of inputs and outputs were folded into the weights")
    return assemble(layers, range(L), (None, None), hints, notes, autoencoder=False, window=L if crosslayer else 1)


def _weights(path: Path, sharded: bool, notes: list[str]) -> dict[str, Tensor]:
    """The weights of one file, or of all shards, without those of a subject that was attached (`model.…`)."""
    ranks = sorted(int(m[1]) for f in path.iterdir() if (m := re.fullmatch(rf"rank(\d+)_{re.escape(WEIGHTS)}", f.name)))
    if sharded != bool(ranks):
        has = "shards" if ranks else "no shards"
        raise DictionaryError(f"{CONFIG} says feature_sharding {sharded}, {path} holds {has}: get the whole folder.")
    if ranks != list(range(len(ranks))):
        raise DictionaryError(f"{path} holds shards {ranks}, which must count from 0 without a gap: get all.")
    names = [f"rank{rank}_{WEIGHTS}" for rank in ranks] or [WEIGHTS]
    read = [files.safetensors(path / name) for name in names]
    parts = [{k: v for k, v in part.items() if not k.startswith("model.")} for part in read]
    state = dict(parts[0])
    if not sharded:
        return state
    for part in parts[1:]:
        if part.keys() != state.keys():
            raise DictionaryError(f"the shards of {path} hold different weights: get them again.")
    for name in ("b_dec", *SCALES):
        if any(not torch.equal(part[name], state[name]) for part in parts[1:]):
            notes.append(f"the shards differ in {name}: that of rank 0 was taken, as CLT-Forge does")
    try:
        return state | {name: torch.cat([part[name] for part in parts], axis) for name, axis in SHARDED.items()}
    except (RuntimeError, IndexError) as error:
        raise DictionaryError(f"the shards of {path} do not fit together: get them again.") from error
