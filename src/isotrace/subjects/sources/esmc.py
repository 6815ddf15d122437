"""ESM-C as its own package `esm` names its weights, written again with the names of transformers.

Two of its layouts are published. One is `data/weights/esmc_*.pth` without any config: the sizes are those of the
weights, and the number of heads is known of the published models alone. The other is safetensors from its authors'
first class for transformers, with a config.json that says `d_model`, `n_heads` and `n_layers`; there the norms and the
linear maps behind them are one module. Both keep queries, keys and values in one matrix, and gates and values of the
MLP in another.
"""

import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isotrace.base.errors import SubjectError

if TYPE_CHECKING:
    from torch import Tensor

PATTERNS = ("data/weights/esmc_*.pth", "esmc_*.pth")
BLOCK = re.compile(r"(?:esmc\.)?transformer\.blocks\.(\d+)\.(.+)")
HEADS = {(960, 30): 15, (1152, 36): 18, (2560, 80): 40}
"""(d_model, layers) of the published models → heads."""
SIZES = {"d_model": "hidden_size", "n_heads": "num_attention_heads", "n_layers": "num_hidden_layers"}
UNREAD = {"architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "initializer_range",
          "classifier_dropout"}  # fmt: skip
"""Settings that say nothing of what is computed here: of how it was saved, and of training."""
FIXED = {"vocab_size": 64, "pad_token_id": 1, "mask_token_id": 32, "tie_word_embeddings": False}
DROPPED = ("_extra_state", "inv_freq")  # state of fused kernels, and frequencies that follow from the sizes

OUTSIDE = {
    "embed": "esmc.embed_tokens",
    "transformer.norm": "esmc.norm",
    **{f"{head}.{i}": f"lm_head.{name}" for head in ("sequence_head", "lm_head")
       for i, name in ((0, "dense"), (2, "layer_norm"), (3, "decoder"))},
}  # fmt: skip
QKV, GATED = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."), ("mlp.gate_proj.", "mlp.up_proj.")
WITHIN: dict[str, tuple[str, ...]] = {
    "attn.layernorm_qkv.0.": ("input_layernorm.",),
    "attn.layernorm_qkv.layer_norm_": ("input_layernorm.",),
    "attn.layernorm_qkv.1.": QKV,
    "attn.layernorm_qkv.": QKV,
    "attn.q_ln.": ("self_attn.q_norm.",),
    "attn.k_ln.": ("self_attn.k_norm.",),
    "attn.out_proj.": ("self_attn.o_proj.",),
    "ffn.0.": ("post_attention_layernorm.",),
    "ffn.layer_norm_": ("post_attention_layernorm.",),
    "ffn.1.": GATED,
    "ffn.fc1_": GATED,
    "ffn.3.": ("mlp.down_proj.",),
    "ffn.fc2_": ("mlp.down_proj.",),
}
"""Name within a block, before `weight` or `bias` → the modules that its rows belong to, in their order."""


def files(folder: Path) -> list[Path]:
    if found := sorted(folder.glob("*.safetensors")):
        return found if any(BLOCK.match(name) for path in found for name in _names(path)) else []
    return sorted(path for pattern in PATTERNS for path in folder.glob(pattern))


def _names(path: Path) -> list[str]:
    """The tensors of a safetensors file, from its header; none of a damaged one, which transformers explains."""
    with path.open("rb") as file:
        try:
            (size,) = struct.unpack("<Q", file.read(8))
            return list(json.loads(file.read(min(size, 2**28))))
        except (struct.error, ValueError):
            return []


def convert(source: str, files: Sequence[Path], config: Path, into: Path) -> None:
    """See `layouts.Layout`."""
    from safetensors.torch import save_file
    from transformers import EsmcTokenizer

    from isotrace.subjects.sources.source import write_record

    weights = renamed(source, _read(source, files))
    try:
        given = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except ValueError as error:
        raise SubjectError(f"cannot load {source}: its config.json is no JSON ({error}).") from error
    settings = configured(source, given, weights)
    (into / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})
    EsmcTokenizer().save_pretrained(into)
    write_record(into, "protein")


def _read(source: str, files: Sequence[Path]) -> "dict[str, Tensor]":
    import torch
    from safetensors.torch import load_file

    if files[0].suffix == ".pth" and len(files) > 1:
        names = " and ".join(path.name for path in files)
        raise SubjectError(f"{source!r} holds two checkpoints, {names}: give each a folder of its own.")
    try:
        if files[0].suffix == ".pth":
            return torch.load(files[0], map_location="cpu", weights_only=True)
        return {name: tensor for path in files for name, tensor in load_file(path).items()}
    except Exception as error:  # a pickle, a zip and safetensors fail in many ways
        raise SubjectError(f"cannot load {source}: {str(error).splitlines()[0]}") from error


def renamed(source: str, state: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The weights by transformers' names, packed ones taken apart. Raises SubjectError for a name that no ESM-C has."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(DROPPED):
            continue
        new = _places(name)
        if not new:
            raise SubjectError(f"{source} holds {name!r}, which no ESM-C has that is known here.")
        parts = [tensor.contiguous()] if len(new) == 1 else [part.clone() for part in tensor.tensor_split(len(new))]
        found |= dict(zip(new, parts, strict=True))
    return found


def _places(name: str) -> list[str]:
    """Where a tensor goes, one place for each of the parts it is made of."""
    if match := BLOCK.fullmatch(name):
        stem, kind = re.fullmatch(r"(.*?)(weight|bias)?", match[2]).groups()  # pyright: ignore  (it always matches)
        return [f"esmc.layers.{match[1]}.{place}{kind}" for place in WITHIN.get(stem, ()) if kind]
    module, _, kind = name.removeprefix("esmc.").rpartition(".")
    return [f"{OUTSIDE[module]}.{kind}"] if module in OUTSIDE else []


def configured(source: str, given: dict[str, Any], weights: "dict[str, Tensor]") -> dict[str, Any]:
    """config.json of transformers, from the authors' own `given` and from the shapes of the weights. Raises
    SubjectError where the two differ, for a setting that is not known, and where the number of heads is not."""
    layers = {int(match[1]) for name in weights if (match := re.match(r"esmc\.layers\.(\d+)\.", name))}
    widths = [weights.get(name) for name in ("esmc.embed_tokens.weight", "esmc.layers.0.mlp.down_proj.weight")]
    if widths[0] is None or widths[1] is None:
        raise SubjectError(f"{source} lacks the embeddings or the first MLP: save it again in full.")
    (words, d_model), d_ff = widths[0].shape, widths[1].shape[1]
    if unknown := sorted(given.keys() - SIZES.keys() - UNREAD - FIXED.keys()):
        raise SubjectError(f"config.json of {source} sets {unknown[0]}, which no ESM-C does that is known here.")
    expected = FIXED | {"vocab_size": words, "d_model": d_model, "n_layers": len(layers)}
    for key, value in expected.items():
        if given.get(key, value) != value:
            raise SubjectError(f"config.json of {source} says {key} {given[key]}, which must be {value}.")
    heads = given.get("n_heads", HEADS.get((d_model, len(layers))))
    if heads is None:
        raise SubjectError(
            f"{source} has {len(layers)} layers of {d_model} dimensions, as no published ESM-C has, and does not say "
            'how many heads: write {"n_heads": …} into a config.json beside it.'
        )
    return {
        "model_type": "esmc",
        "architectures": ["EsmcForMaskedLM" if "lm_head.decoder.weight" in weights else "EsmcModel"],
        "hidden_size": d_model,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "intermediate_size": d_ff,
        "vocab_size": words,
    }
