"""Tiny random subjects and dictionaries with no zero weight, and ways to make the exact ones tests need."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, EsmConfig, EsmForMaskedLM, PreTrainedModel

from isotrace.circuits.targets import Target, parse_target
from isotrace.dictionaries.build import build, configure
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.domains.molecule.tokenizer import build_tokenizer
from isotrace.subjects.probe import Probe
from isotrace.subjects.subject import Batch, Subject, load_subject

VARIANTS = ("esm-rotary", "esm-token-dropout", "esm-absolute", "bert")
SMILES = "C[nH]1O=c1"
MOLECULES = ["CCOCC", "c1cc[nH]c1", "CC(=O)N", "OCCN", "c1ccccc1", "CC(=O)O", "NCCNC", "C#CCO", "OC=O", "CCCl"]
D_MODEL, N_LAYERS, MAX_POSITIONS = 16, 3, 24
SEED = 0


def tokenizer():
    return build_tokenizer(["c1cc[nH]c1", "C[NH3+]"], min_count=1, max_length=64)


def perturb(model: torch.nn.Module, scale: float, seed: int) -> None:
    """Adds noise to every parameter, so that biases and norms are neither zero nor one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)


def tiny_model(variant: str, **changes) -> PreTrainedModel:
    torch.manual_seed(SEED)
    shape = {
        "vocab_size": len(tokenizer()),
        "hidden_size": D_MODEL,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": MAX_POSITIONS,
        "pad_token_id": 1,
    }
    if variant == "bert":
        model: PreTrainedModel = BertForMaskedLM(BertConfig(**shape | changes))
    else:
        shape |= {
            "mask_token_id": 4,
            "token_dropout": variant == "esm-token-dropout",
            "position_embedding_type": "absolute" if variant == "esm-absolute" else "rotary",
            "emb_layer_norm_before": variant == "esm-absolute",
        }
        model = EsmForMaskedLM(EsmConfig(**shape | changes))
    perturb(model, 0.25, seed=SEED + VARIANTS.index(variant))
    return model


def fit(model: PreTrainedModel, sequences: list[str], steps: int) -> PreTrainedModel:
    """A few steps of masked language modelling, so that the MLPs help and ablating them costs something."""
    encoded = tokenizer()(sequences, padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = (torch.rand(ids.shape, generator=generator) < 0.3) & (ids > 4)
        logits = model(input_ids=ids.masked_fill(chosen, 4), attention_mask=mask).logits
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits[chosen], ids[chosen]).backward()
        optimizer.step()
    return model


def save_subject(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def in_float64(subject: Subject) -> Subject:
    subject.model.double()
    return subject


def load_tiny(folder: Path) -> Subject:
    return load_subject(folder, domain="molecule")


def random_dictionary(
    subject: Subject,
    architecture: str = "crosslayer",
    *,
    n_features: int = 12,
    k: int | None = 3,
    seed: int = 0,
    **given,
) -> Dictionary:
    """Non-zero weights, rule parameters and statistics in torch's default dtype; thresholds are positive."""
    return randomised(configure(subject, architecture, n_features=n_features, k=k, **given), seed)


def randomised(config: DictionaryConfig, seed: int = 0) -> Dictionary:
    dictionary = build(config, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in dictionary.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    statistics = [dictionary.mean_activation, dictionary.density]
    for tensor in statistics + [t for name, t in dictionary.state_dict().items() if name == "rule.threshold"]:
        tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return dictionary.requires_grad_(False)


def exact_dictionary(subject: Subject) -> Dictionary:
    """A per-layer transcoder equal to the MLPs of a subject whose MLPs are linear → ReLU → linear."""
    n_neurons = subject.model.config.intermediate_size
    dictionary = random_dictionary(subject, n_features=n_neurons, k=n_neurons, window=1)
    for layer in range(subject.n_layers):
        first = subject.module(subject.family.mlp_in, layer)
        last = subject.module(subject.family.mlp_out, layer)
        dictionary.W_enc[layer].data.copy_(first.weight.T)
        dictionary.b_enc[layer].data.copy_(first.bias)
        dictionary.W_dec[layer].data.copy_(last.weight.T)
        dictionary.b_dec[layer].data.copy_(last.bias)
    return dictionary


def random_probe(subject: Subject, seed: int = 0) -> Probe:
    generator = torch.Generator().manual_seed(seed)
    mean, weight = torch.randn(2, subject.d_model, generator=generator).tolist()
    scale = (0.5 + torch.rand(subject.d_model, generator=generator)).tolist()
    sha = subject.files.weights_sha256
    return Probe("isotrace-probe", 1, "tiny", "a random probe", "regression", "1", sha, mean, scale, weight, 0.7)


def make_target(kind: str, subject: Subject, batch: Batch) -> Target:
    """mask, diff or probe, on position 2 of SMILES."""
    if kind == "probe":
        return Target("probe", "probe:tiny", "a random probe", "1", probe=random_probe(subject))
    return parse_target({"mask": "mask:2", "diff": "diff:2:C:O"}[kind], subject, batch)


def prepared(kind: str, subject: Subject, smiles: str = SMILES) -> tuple[Batch, Target]:
    batch = subject.tokenize([smiles])
    target = make_target(kind, subject, batch)
    return target.prepare(subject, batch), target


def with_config(dictionary: Dictionary, **changes) -> DictionaryConfig:
    return replace(dictionary.config, **changes)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest deviation, relative to the largest expected magnitude."""
    return float((found - expected).abs().max() / expected.abs().max())
