"""Record what other tools do with their own dictionary files, and with ours: fixtures of tests/dictionaries/interop.

    python scripts/make_interop_fixtures.py saelens --out tests/data/interop      in the tool's environment
    python scripts/make_interop_fixtures.py isotrace --out tests/data/interop     in isotrace's
    python scripts/make_interop_fixtures.py saelens --check tests/data/interop    in the tool's again

The first makes small random dictionaries of every kind the tool has, saves them with the tool's own functions and
records what its own encode and forward give on random input: `TOOL/KIND/files/`, `TOOL/KIND/recorded.safetensors`. The
second writes isotrace dictionaries, `reverse/dictionaries/KIND/`, in every format: `reverse/TOOL/KIND/files/`. The
third loads those with the tool and records what it gives beside them.

clt_training, clt_forge, interplm, interprot and protomech are in no package index: put a checkout of each on PYTHONPATH
(protomech: its three training folders). All but clt_training are read only, so have no `--check`.
"""

import argparse
import json
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import save_file

import interop_checkouts as checkouts
import interop_tools as tools
from interop_tools import LAYERS, D, F, K

TOKENS = 8
TOOLS = {
    made.__name__: made
    for made in (
        *(tools.saelens, tools.sparsify, tools.circuit_tracer, tools.dictionary_learning),
        *(checkouts.clt_training, checkouts.clt_forge, checkouts.interplm, checkouts.interprot, checkouts.protomech),
    )
}
LOADERS = {
    "saelens": tools.saelens_load,
    "sparsify": tools.sparsify_load,
    "clt_training": checkouts.clt_training_load,
    "circuit_tracer": tools.circuit_tracer_load,
    "dictionary_learning": tools.dictionary_learning_load,
}
PACKAGES = {
    "saelens": "sae-lens",
    "sparsify": "eai-sparsify",
    "circuit_tracer": "circuit-tracer",
    "dictionary_learning": "dictionary-learning",
}
SITE, MLP = ("layers.{}.resid_post",) * 2, ("layers.{}.mlp_in", "layers.{}.mlp_out")
# kind → architecture, activation, settings
KINDS = {
    "sae_relu": ("sae", "relu", {}),
    "sae_topk": ("sae", "topk", {"k": K}),
    "sae_topk_standardize": ("sae", "topk", {"k": K, "token_normalization": "standardize"}),
    "sae_jumprelu": ("sae", "jumprelu", {}),
    "sae_gated": ("sae", "gated", {}),
    "sae_batchtopk": ("sae", "batchtopk", {"k": K}),
    "sae_matryoshka": ("sae", "batchtopk", {"k": K, "prefixes": (4, F)}),
    "sae_topk_2_layers": ("sae", "topk", {"k": K, "layers": (1, 4)}),
    "transcoder_relu": ("transcoder", "relu", {"d_out": 4}),
    "transcoder_jumprelu": ("transcoder", "jumprelu", {"d_out": 4}),
    "skip_transcoder_batchtopk": ("skip_transcoder", "batchtopk", {"d_out": 4, "skip": True, "k": K}),
    "transcoder_topk_2_layers": ("transcoder", "topk", {"k": K, "layers": (1, 4)}),
    "skip_transcoder_topk_2_layers": ("skip_transcoder", "topk", {"k": K, "layers": (1, 4), "skip": True}),
    "transcoder_batchtopk_3_layers": ("transcoder", "batchtopk", {"k": K, "layers": (0, 1, 2)}),
    "skip_transcoder_relu_3_layers": ("skip_transcoder", "relu", {"layers": (0, 1, 2), "skip": True}),
    "crosslayer_relu": ("crosslayer", "relu", {"layers": (0, 1, 2), "window": 3}),
    "crosslayer_jumprelu_window": ("crosslayer", "jumprelu", {"layers": (0, 1, 2), "window": 2}),
    "crosslayer_topk": ("crosslayer", "topk", {"layers": (0, 1, 2), "window": 3, "k": K}),
    "crosslayer_topk_window": ("crosslayer", "topk", {"layers": (0, 1, 2), "window": 2, "k": K, "skip": True}),
}
WRITES = {
    "saelens": [kind for kind in KINDS if "layers" not in kind and "crosslayer" not in kind],
    "dictionary_learning": [f"sae_{rule}" for rule in ("relu", "topk", "jumprelu", "gated", "batchtopk", "matryoshka")],
    "sparsify": [kind for kind in KINDS if kind.endswith("2_layers")],
    "clt_training": ["crosslayer_topk", "crosslayer_topk_window", "skip_transcoder_topk_2_layers"],
    "circuit_tracer": [kind for kind in KINDS if kind.endswith("3_layers")]
    + ["crosslayer_relu", "crosslayer_jumprelu_window"],
}


def record(folder: Path, function, x: torch.Tensor) -> None:
    with torch.no_grad():
        features, y = function(x)
    tensors = {"x": x, "features": features, "y": y}
    save_file({name: value.detach().contiguous().float() for name, value in tensors.items()}, folder)


def note_version(out: Path, tool: str, key: str) -> None:
    """`versions.json`: what made each folder."""
    path = out / "versions.json"
    versions = json.loads(path.read_text()) if path.is_file() else {}
    try:
        made_by = f"{PACKAGES[tool]} {version(PACKAGES[tool])}"
    except (KeyError, PackageNotFoundError):
        made_by = "source checkout"
    versions[f"{key}{tool}"] = f"{made_by}, torch {torch.__version__.split('+')[0]}"
    path.write_text(json.dumps(dict(sorted(versions.items())), indent=2) + "\n")


def forward(tool: str, out: Path) -> None:
    torch.manual_seed(0)
    shutil.rmtree(out / tool, ignore_errors=True)
    for kind, save, function, n_layers in TOOLS[tool]():
        files = out / tool / kind / "files"
        files.mkdir(parents=True)
        save(files)
        record(files.parent / "recorded.safetensors", function, torch.randn(n_layers, TOKENS, D))
    note_version(out, tool, "")


def reverse(out: Path) -> None:
    from isotrace.dictionaries import interop
    from isotrace.dictionaries.build import build
    from isotrace.dictionaries.config import DictionaryConfig, SubjectReference
    from isotrace.dictionaries.saving import save_dictionary

    base = out / "reverse"
    subject = SubjectReference("tiny", "esm", LAYERS, D, "0", "0")
    for kind, (architecture, activation, settings) in KINDS.items():
        reads, writes = SITE if architecture == "sae" else MLP
        shape = {"d_in": D, "d_out": D, "n_features": F, "layers": (2,)} | settings
        config = DictionaryConfig(
            architecture=architecture, activation=activation, hookpoint_in=reads, hookpoint_out=writes, **shape
        )
        dictionary, generator = build(config, 0), torch.Generator().manual_seed(len(kind))
        for name, value in dictionary.state_dict().items():
            noise = 0.4 * torch.randn(value.shape, generator=generator)
            value.copy_(noise.abs() if "threshold" in name or name in ("mean_activation", "density") else noise)
        save_dictionary(dictionary, base / "dictionaries" / kind, subject, dtype=torch.float32, training={})
        for tool, kinds in WRITES.items():
            if kind in kinds:
                shutil.rmtree(base / tool / kind, ignore_errors=True)
                interop.write(dictionary, base / tool / kind / "files", tool, "tiny")


def check(tool: str, out: Path) -> None:
    torch.manual_seed(1)
    for folder in sorted((out / "reverse" / tool).iterdir()):
        layers = json.loads((out / "reverse" / "dictionaries" / folder.name / "dictionary.json").read_text())
        x = torch.randn(len(layers["config"]["layers"]), TOKENS, D)
        record(folder / "recorded.safetensors", LOADERS[tool](folder / "files"), x)
        print(f"{tool} loads {folder.name}")
    note_version(out, tool, "reverse/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=["isotrace", *TOOLS])
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--out", type=Path, help="folder to write fixtures to")
    group.add_argument("--check", type=Path, help="folder with fixtures: let the tool load what isotrace wrote")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.check:
        check(arguments.tool, arguments.check)
    elif arguments.tool == "isotrace":
        reverse(arguments.out)
    else:
        forward(arguments.tool, arguments.out)


if __name__ == "__main__":
    main()
