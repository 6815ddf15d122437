"""Architectures compute what their authors' own code computes, from checkpoints named and packed as theirs are.

tests/data/families/*.safetensors are what that code gave for weights by a formula, see
scripts/make_family_reference.py; no published checkpoint is in them.
"""

import importlib.util
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny
from isotrace.base.errors import InputError, SubjectError
from isotrace.subjects.conformance import check
from isotrace.subjects.families.native import progen_tokenizer
from isotrace.subjects.sources import esmc
from isotrace.subjects.sources.layouts import translated
from isotrace.subjects.subject import load_subject

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("reference", ROOT / "scripts/make_family_reference.py")
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOTRACE_CACHE", str(tmp_path / "cache"))


class Recorded:
    def __init__(self, family):
        path = ROOT / f"tests/data/families/{family}.safetensors"
        with safe_open(path, "pt") as file:
            self.about = json.loads(file.metadata()["about"])
        self.tensors = load_file(path)
        shapes = self.about["weights"].items()
        self.weights = {name: reference.weight(i, tuple(shape)) for i, (name, shape) in enumerate(shapes)}


def agrees(subject, recorded):
    batch = subject.tokenize(recorded.about["sequences"])
    assert torch.equal(batch.ids, recorded.tensors["ids"])
    assert torch.equal(batch.mask, recorded.tensors["mask"].bool())
    names = [f"layers.{layer}.resid_post" for layer in range(subject.n_layers)]
    found = subject.run(batch, capture=names)
    pairs = [(found.captured[name], block) for name, block in zip(names, recorded.tensors["blocks"], strict=True)]
    for ours, theirs in [*pairs, (found.final, recorded.tensors["final"]), (found.logits, recorded.tensors["logits"])]:
        assert tiny.relative(ours[batch.mask], theirs[batch.mask]) < 1e-5


@pytest.fixture(scope="module")
def esm():
    return Recorded("esmc")


def pth(folder, weights, settings):
    """As `esm` loads it: one pickle below data/weights, and here a config, since these sizes are nobody's."""
    (folder / "data/weights").mkdir(parents=True)
    torch.save(weights, folder / "data/weights/esmc_tiny_v0.pth")
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    return folder


def fused(name):
    """The names of the same weights where a norm and the linear maps behind it are one module."""
    for old, new in (
        ("layernorm_qkv.0.", "layernorm_qkv.layer_norm_"), ("layernorm_qkv.1.", "layernorm_qkv."),
        ("ffn.0.", "ffn.layer_norm_"), ("ffn.1.", "ffn.fc1_"), ("ffn.3.", "ffn.fc2_"), ("sequence_head.", "lm_head."),
    ):  # fmt: skip
        name = name.replace(old, new)
    return name if name.startswith("lm_head.") else f"esmc.{name}"


@torch.no_grad()
def test_esmc_from_its_own_checkpoint(esm, tmp_path):
    subject = load_subject(pth(tmp_path / "own", esm.weights, {"n_heads": 3}))
    agrees(subject, esm)
    assert (subject.files.domain, subject.mask_id, subject.max_tokens) == ("protein", 32, 2048)
    assert max(check(subject, esm.about["sequences"]).values()) < 1e-4
    again = load_subject(tmp_path / "own", domain="antibody")
    assert (again.files.folder, again.files.domain) == (subject.files.folder, "antibody")


@torch.no_grad()
def test_esmc_with_fused_norms_and_in_shards(esm, tmp_path):
    weights = {fused(name): tensor for name, tensor in esm.weights.items()}
    weights["esmc.transformer.blocks.0.attn.layernorm_qkv._extra_state"] = torch.zeros(3, dtype=torch.uint8)
    names = sorted(weights)
    for i, part in enumerate((names[:9], names[9:])):
        save_file({name: weights[name] for name in part}, tmp_path / f"model-{i}.safetensors")
    settings = {"architectures": ["ESMCForMaskedLM"], "model_type": "esmc", "vocab_size": 64, "pad_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(settings | esm.about["sizes"]))
    agrees(load_subject(tmp_path), esm)


@torch.no_grad()
def test_esmc_as_transformers_saves_it(esm, tmp_path):
    """With the name that the tokenizer's class had before, as it still stands in published folders."""
    folder = translated("own", pth(tmp_path / "own", esm.weights, {"n_heads": 3}))
    shutil.copytree(folder, tmp_path / "saved")
    assert translated("saved", tmp_path / "saved") == tmp_path / "saved"
    written = json.loads((tmp_path / "saved/tokenizer_config.json").read_text())
    (tmp_path / "saved/tokenizer_config.json").write_text(json.dumps(written | {"tokenizer_class": "ESMCTokenizer"}))
    agrees(load_subject(tmp_path / "saved", domain="protein"), esm)
    config = transformers.AutoConfig.from_pretrained(folder)
    assert (config.num_attention_heads, config.intermediate_size, config.vocab_size) == (3, 256, 64)


@pytest.mark.parametrize(("sizes", "heads"), [((960, 30), 15), ((1152, 36), 18), ((2560, 80), 40)])
def test_the_published_sizes_say_their_heads(sizes, heads):
    d_model, n_layers = sizes
    weights = {f"esmc.layers.{i}.mlp.down_proj.weight": torch.empty(d_model, 4, device="meta") for i in range(n_layers)}
    weights["esmc.embed_tokens.weight"] = torch.empty(64, d_model, device="meta")
    assert esmc.configured("it", {}, weights)["num_attention_heads"] == heads


def without(name):
    return lambda weights, settings: weights.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights, settings: settings.clear(), r"2 layers of 48 dimensions, as no published .*write .*n_heads"),
        (lambda weights, settings: settings.update(n_kv_heads=1), "sets n_kv_heads, which no ESM-C does"),
        (lambda weights, settings: settings.update(d_model=64), "says d_model 64, which must be 48"),
        (lambda weights, settings: settings.update(tie_word_embeddings=True), "says tie_word_embeddings True"),
        (lambda weights, settings: weights.update({"structure_head.0.bias": torch.ones(2)}), "holds 'structure_head"),
        (without("embed.weight"), "lacks the embeddings"),
        (without("transformer.blocks.1.attn.k_ln.weight"), r"lacks 1 weights, 'esmc.layers.1.self_attn.k_norm.weight'"),
    ],
)
def test_what_is_no_known_esmc_is_refused(esm, tmp_path, change, message):
    weights, settings = dict(esm.weights), {"n_heads": 3}
    change(weights, settings)
    with pytest.raises(SubjectError, match=message):
        load_subject(pth(tmp_path / "own", weights, settings))


def test_damaged_and_doubled_checkpoints(esm, tmp_path):
    folder = pth(tmp_path / "own", {}, None)
    only = folder / "data/weights/esmc_tiny_v0.pth"
    only.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(SubjectError, match=r"cannot load .*own"):
        load_subject(folder)
    shutil.copy(only, folder / "data/weights/esmc_tiny_v1.pth")
    with pytest.raises(SubjectError, match=r"two checkpoints, esmc_tiny_v0\.pth and esmc_tiny_v1\.pth"):
        load_subject(folder)
    assert not list((tmp_path / "cache").rglob("config.json"))


@pytest.fixture(scope="module")
def progen():
    return Recorded("progen")


def published(folder, weights, **changes):
    """As the archives of its authors: a pickle with what is no weight, and no tokenizer."""
    folder.mkdir()
    config = {"model_type": "progen", "architectures": ["ProGenForCausalLM"], "scale_attn_weights": True}
    (folder / "config.json").write_text(json.dumps(config | changes))
    buffers = {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()}
    torch.save(
        weights | buffers | {"transformer.h.0.attn.masked_bias": torch.tensor(-1e9)}, folder / "pytorch_model.bin"
    )
    return folder


@torch.no_grad()
def test_progen_from_the_archive_of_its_authors(progen, tmp_path):
    subject = load_subject(published(tmp_path / "own", progen.weights, **progen.about["sizes"]), domain="protein")
    agrees(subject, progen)
    assert (subject.objective, subject.max_tokens, subject.has_head) == ("causal", 32, True)
    ids = subject.tokenize(progen.about["sequences"]).ids
    assert subject.special(ids)[0].tolist() == [True] + [False] * 11 + [True]
    assert max(check(subject, progen.about["sequences"]).values()) < 1e-4


@torch.no_grad()
def test_progen_from_the_hub(progen, tmp_path):
    """Other names for the settings, the tokenizer's file, and code that must not be asked for."""
    sizes = dict(progen.about["sizes"])
    sizes |= {"embed_dim": sizes.pop("n_embd"), "vocab_size_emb": 32, "vocab_size_lm_head": sizes.pop("vocab_size")}
    code = {
        "AutoModelForCausalLM": "modeling_progen.ProGenForCausalLM",
        "AutoConfig": "configuration_progen.ProGenConfig",
    }
    folder = published(tmp_path / "own", {}, auto_map=code, **sizes)
    (folder / "pytorch_model.bin").unlink()
    save_file(progen.weights, folder / "model.safetensors", metadata={"format": "pt"})
    progen_tokenizer.of_words().save(str(folder / "tokenizer.json"))
    agrees(load_subject(folder, domain="protein"), progen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 4}, r"its 4 heads \(n_head\) are not of one width, or no multiple of 8"),
        ({"rotary_dim": 12}, r"12 dimensions turn \(rotary_dim\), which must be even and at most the 8 of a head"),
        ({"vocab_size_lm_head": 30}, r"it writes 30 tokens \(vocab_size_lm_head\) and reads 32"),
        ({"activation_function": "mish2"}, "transformers has no function 'mish2'"),
        ({"n_layer": 3}, r"lacks 8 weights, 'transformer.h.2.attn.out_proj.weight' first"),
    ],
)
def test_what_is_no_known_progen_is_refused(progen, tmp_path, changes, message):
    with pytest.raises(SubjectError, match=message):
        load_subject(published(tmp_path / "own", progen.weights, **progen.about["sizes"] | changes), domain="protein")


@pytest.fixture(scope="module")
def ted():
    return Recorded("smited")


def hub(folder, recorded, **changes):
    """As the authors' package saves it, with a head for fine-tuning that is not read, and without its tokenizer's
    settings."""
    folder.mkdir()
    words = recorded.about["words"]
    config = {"model_type": "materials.smi-ted", "architectures": ["MaterialsSmiTedHFModel"], "vocab_size": len(words)}
    (folder / "config.json").write_text(json.dumps(config | recorded.about["sizes"] | changes))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    save_file({f"smi_ted.{n}": t for n, t in recorded.weights.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def trained(folder, recorded, state=None):
    """As the authors' training saves it, with the state of NumPy's random numbers."""
    folder.mkdir()
    (folder / "bert_vocab_curated.txt").write_text("\n".join(recorded.about["words"]) + "\n")
    rng = {"numpy_state": np.random.get_state(), "python_state": random.getstate()}  # noqa: NPY002
    state = {"MODEL_STATE": recorded.weights} if state is None else state
    torch.save(state | {"hparams": {"n_layer": 12}, "rng": rng}, folder / "smi-ted-Tiny_3.pt")
    return folder


def saved_again(folder, recorded):
    subject = load_subject(hub(folder / "first", recorded), domain="molecule")
    subject.model.save_pretrained(folder / "own")
    subject.tokenizer.save_pretrained(folder / "own")
    return folder / "own"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["hub", "trained", "parts", "saved"])
def test_smited_from_the_hub_its_training_and_its_own_saving(ted, tmp_path, kind):
    parts = [
        {n.removeprefix(p): t for n, t in ted.weights.items() if n.startswith(p)} for p in ("encoder.", "decoder.")
    ]
    folder = {
        "hub": lambda: hub(tmp_path / "own", ted),
        "trained": lambda: trained(tmp_path / "own", ted),
        "parts": lambda: trained(tmp_path / "own", ted, {"state_dict": parts}),
        "saved": lambda: saved_again(tmp_path, ted),
    }[kind]()
    subject = load_subject(folder, domain="molecule")
    agrees(subject, ted)
    batch, recorded = subject.tokenize(ted.about["sequences"]), ted.tensors
    assert (subject.mask_id, subject.pad_id, subject.max_tokens) == (3, 2, 20)
    base = subject.model.base_model
    latent = base.pooled(subject.hidden(batch.ids, batch.mask), batch.mask)
    assert latent.shape == (2, 1, 16)
    assert tiny.relative(latent[:, 0], recorded["latent"]) < 1e-5
    decoded = base.decoder["lang_model"](base.unpooled(latent, 20))
    assert tiny.relative(decoded, recorded["decoded"]) < 1e-5
    if kind == "hub":
        assert max(check(subject, ted.about["sequences"]).values()) < 1e-4


def test_what_is_no_known_smited_is_refused(ted, tmp_path):
    weights = {n: t for n, t in ted.weights.items() if "rec" not in n}
    with pytest.raises(SubjectError, match=r"lacks 1 weights, 'smi_ted.decoder.autoencoder.decoder.rec.weight'"):
        load_subject(trained(tmp_path / "half", ted, {"MODEL_STATE": weights}))
    with pytest.raises(SubjectError, match=r"lacks 'smi_ted.encoder.tok_emb.weight'"):
        load_subject(trained(tmp_path / "other", ted, {"MODEL_STATE": {}}))
    folder = trained(tmp_path / "two", ted)
    shutil.copy(folder / "smi-ted-Tiny_3.pt", folder / "smi-ted-Tiny_4.pt")
    with pytest.raises(SubjectError, match=r"two checkpoints, smi-ted-Tiny_3\.pt and smi-ted-Tiny_4\.pt"):
        load_subject(folder)
    (folder / "smi-ted-Tiny_4.pt").unlink()
    (folder / "bert_vocab_curated.txt").unlink()
    with pytest.raises(SubjectError, match=r"no bert_vocab_curated\.txt: put it beside smi-ted-Tiny_3\.pt"):
        load_subject(folder)
    (folder / "bert_vocab_curated.txt").write_text("x")
    (folder / "smi-ted-Tiny_3.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(SubjectError, match=r"cannot load .*two"):
        load_subject(folder)


def test_symbols_that_smited_does_not_know_are_refused(ted, tmp_path):
    """Its own code takes them for padding, and its package for the hub drops a backslash as well."""
    subject = load_subject(hub(tmp_path / "own", ted), domain="molecule")
    assert subject.tokens(subject.tokenize(["F/C=C\\[O-]"]).ids[0])[5:7] == ["C", "\\"]
    for bad, message in (("CS", "'S'"), ("C" * 19, "21 tokens")):
        with pytest.raises(InputError, match=message):
            subject.tokenize([bad])
