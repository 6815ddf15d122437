"""Record what the reference code of an architecture computes, for `tests/subjects/test_reference_code.py`.

    python scripts/make_family_reference.py esmc --code ESM --out tests/data/families/esmc.safetensors
    python scripts/make_family_reference.py progen --code PROGEN2 --out tests/data/families/progen.safetensors
    python scripts/make_family_reference.py smited --code SMITED --out tests/data/families/smited.safetensors
    python scripts/make_family_reference.py annalog --code ANNALOG --out tests/data/families/annalog.safetensors

ESM: the unpacked wheel `esm` 3.2.1.post1 (`pip download --no-deps esm`; `pip install --no-deps einops` beside it).
PROGEN2: the folder `progen2` of the repository salesforce/progen, at commit c27a419.
SMITED: the folder `models/smi_ted/inference/smi_ted_light` of the repository IBM/materials, at commit dc01519, which
has the code of fast-transformers beside it (the wheel `smi-ted` 1.0.0 has the same model without that).
ANNALOG: the unpacked wheel `annalog` 1.0.6.
None is needed otherwise, and no published weights are: a tiny model gets weights by a formula (`weight`), which the
test computes again. Recorded are the names and shapes of all weights, the ids of two sequences in one padded batch, the
stream behind every block, the final hidden state and the logits; of SMI-TED also the latent, and the logits of what its
decoder makes of it; of ANNalog, which writes one sequence from another, the ids of both, and the blocks of its encoder
apart.
"""

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


def weight(index: int, shape: tuple[int, ...]) -> Tensor:
    """The same numbers wherever they are computed: sin of the place, with another stride for every tensor. Vectors
    (norms and biases) are near one half."""
    n = int(torch.tensor(shape).prod())
    wave = torch.sin((torch.arange(n, dtype=torch.float64) + 1) * (0.7 + 0.11 * index)).reshape(shape)
    return (0.5 + 0.3 * wave if len(shape) == 1 else 0.2 * wave).float()


def filled(model: nn.Module) -> dict[str, list[int]]:
    """Gives every learned tensor its numbers; name → shape, in the order of the names."""
    state = {name: tensor for name, tensor in sorted(model.state_dict().items()) if tensor.is_floating_point()}
    state = {name: tensor for name, tensor in state.items() if tensor.ndim and not name.endswith("inv_freq")}
    for index, tensor in enumerate(state.values()):
        tensor.copy_(weight(index, tuple(tensor.shape)))
    return {name: list(tensor.shape) for name, tensor in state.items()}


def watched(blocks: nn.ModuleList) -> list[Tensor]:
    """Receives what every block returns."""
    seen: list[Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    return seen


def esmc() -> tuple[dict[str, Tensor], dict[str, Any]]:
    # the model's file also imports the client of a web service, and what reads structures
    for name in ("esm.sdk.api", "esm.utils.encoding", "esm.utils.decoding", "esm.utils.misc", "esm.utils.sampling"):
        sys.modules[name] = MagicMock(spec=ModuleType(name))
        for needed in ("ESMProtein", "ESMProteinTensor", "ForwardTrackData", "LogitsConfig", "LogitsOutput",
                       "ESMCInferenceClient", "decode_sequence", "stack_variable_length_tensors",
                       "fp32_autocast_context", "_BatchedESMProteinTensor"):  # fmt: skip
            setattr(sys.modules[name], needed, type(needed, (), {}))
    for package in ("esm.tokenization", "esm.sdk"):
        sys.modules[package] = MagicMock(spec=ModuleType(package))
        sys.modules[package].EsmSequenceTokenizer = type("EsmSequenceTokenizer", (), {})
    from esm.models.esmc import ESMC  # pyright: ignore[reportMissingImports]
    from transformers import EsmcTokenizer

    sequences, sizes = ["MKTAYIAKQRQ", "GSHW|CX"], {"d_model": 48, "n_heads": 3, "n_layers": 2}
    tokenizer = EsmcTokenizer()
    model = ESMC(**sizes, tokenizer=tokenizer, use_flash_attn=False).eval()
    about = {"weights": filled(model), "sizes": sizes, "sequences": sequences}
    batch = tokenizer(sequences, padding=True, return_tensors="pt")
    seen = watched(model.transformer.blocks)
    out = model(batch["input_ids"])
    found = {"ids": batch["input_ids"], "mask": batch["attention_mask"], "final": out.embeddings}
    return found | {"logits": out.sequence_logits, "blocks": torch.stack(seen)}, about


def progen(code: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    # written for an older transformers, of which it needs nothing here but names
    old = ModuleType("transformers.utils.model_parallel_utils")
    old.__dict__.update(assert_device_map=None, get_device_map=None)
    sys.modules[old.__name__] = old
    from models.progen.configuration_progen import ProGenConfig  # pyright: ignore[reportMissingImports]
    from models.progen.modeling_progen import (  # pyright: ignore[reportMissingImports]
        ProGenForCausalLM,
        ProGenPreTrainedModel,
    )
    from tokenizers import Tokenizer

    ProGenPreTrainedModel.init_weights = lambda self: None
    ProGenPreTrainedModel.get_head_mask = lambda self, mask, n_layers: [mask] * n_layers
    sequences = ["MKTAYIAKQRQ", "GSHWBCX"]
    sizes = {"vocab_size": 32, "n_positions": 32, "n_ctx": 32, "n_embd": 64, "n_layer": 2, "n_head": 8, "rotary_dim": 4}
    model = ProGenForCausalLM(ProGenConfig(**sizes)).eval()
    about = {"weights": filled(model), "sizes": sizes, "sequences": sequences}
    tokenizer = Tokenizer.from_file(str(code / "tokenizer.json"))
    rows = [torch.tensor(tokenizer.encode(f"1{text}2").ids) for text in sequences]
    pad = nn.utils.rnn.pad_sequence
    ids, mask = pad(rows, batch_first=True), pad([torch.ones_like(row) for row in rows], batch_first=True)
    seen, last = watched(model.transformer.h), watched(nn.ModuleList([model.transformer.ln_f]))
    out = model(ids, attention_mask=mask, use_cache=False, return_dict=True)
    found = {"ids": ids, "mask": mask, "final": last[0], "logits": out.logits, "blocks": torch.stack(seen)}
    return found, about


def smited(code: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import re

    import tqdm
    from transformers import BertTokenizer

    assert BertTokenizer  # before pandas, which is for tables that are not made here, is somebody else
    setattr(tqdm.tqdm, "pandas", lambda: None)  # noqa: B010
    for name in ("pandas", "rdkit.Chem.PandasTools"):
        sys.modules[name] = MagicMock()
    from load import PATTERN, Smi_ted  # pyright: ignore[reportMissingImports]

    sequences = ["CC(=O)Oc1ccccc1Br", "F/C=C\\[O-]"]
    words = ["<bos>", "<eos>", "<pad>", "<mask>", *"Cc()1ON2=nF/\\", "Br", "Cl", "[O-]", "<unk>"]
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "max_len": 20, "num_feats": 6}
    tokenizer = MagicMock(vocab=words, get_padding_idx=lambda: words.index("<pad>"))
    model = Smi_ted(tokenizer, sizes | {"d_dropout": 0.1, "n_output": 1, "seed": 0}).eval()
    model.max_len, model.n_embd = sizes["max_len"], sizes["n_embd"]  # as its loading of a checkpoint does
    about = {"weights": filled(model), "sizes": sizes, "sequences": sequences, "words": words}
    rows = [torch.tensor([0, *(words.index(word) for word in re.findall(PATTERN, text)), 1]) for text in sequences]
    pad = nn.utils.rnn.pad_sequence
    ids, mask = pad(rows, True, 2), pad([torch.ones_like(row) for row in rows], True)
    seen = watched(model.encoder.blocks.layers)
    model.tokenize = lambda smiles: (ids, mask)
    _, tokens, latent = model.extract_embeddings(sequences)
    final = tokens[:, : ids.shape[1]]
    decoded = model.decoder.autoencoder.decoder(latent).view(-1, model.max_len, model.n_embd)
    found = {"ids": ids, "mask": mask, "final": final, "logits": model.encoder.lang_model(final), "latent": latent}
    return found | {"decoded": model.decoder.lang_model(decoded), "blocks": torch.stack(seen)}, about


def annalog(code: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    folder = code / "annalog" / "model_files"
    package = ModuleType("model_files")  # without what the package imports beside it
    package.__path__ = [str(folder)]
    sys.modules["model_files"] = package
    from model_files import seq2seq_attention as reference  # pyright: ignore[reportMissingImports]
    from model_files.vocabulary import SMILESTokenizer  # pyright: ignore[reportMissingImports]

    words = ["<unk>", "<pad>", "<sos>", "<eos>", *"Cc()1ON2=nF", "Cl", "[O-]", "%10"]
    sequences, sources = ["CC(=O)Oc1ccccc1Cl", "FC=C[O-]"], ["CCO", "c1ccccc1CCN=C"]
    sizes = {"hid_dim": 32, "n_layers": 2, "n_heads": 8, "pf_dim": 24, "dropout": 0.1, "device": "cpu"}
    stacks = [kind(len(words), **sizes, max_length=20) for kind in (reference.Encoder, reference.Decoder)]
    model = reference.Seq2Seq(*stacks, 1, 1, "cpu").eval()
    about = {"weights": filled(model), "sequences": sequences, "sources": sources, "words": words}
    cut, pad = SMILESTokenizer().tokenize, nn.utils.rnn.pad_sequence
    given, ids = (
        pad([torch.tensor([2, *map(words.index, cut(text)), 3]) for text in texts], True, 1)
        for texts in (sources, sequences)
    )
    seen = [watched(stack.layers) for stack in stacks]
    logits = model(given, ids)[0]
    found = {"ids": ids, "mask": (ids != 1).long(), "sources": given, "final": seen[1][-1], "logits": logits}
    return found | {"encoder": torch.stack(seen[0]), "blocks": torch.stack(seen[1])}, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=("esmc", "progen", "smited", "annalog"))
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    sys.path.insert(0, str(given.code))
    with torch.no_grad():
        record = {"esmc": lambda _: esmc(), "progen": progen, "smited": smited, "annalog": annalog}[given.family]
        tensors, about = record(given.code)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, given.out, {"about": json.dumps(about)})


if __name__ == "__main__":
    main()
