"""Tiny random subjects and dictionaries with no zero weight, and ways to make the exact ones tests need."""

from dataclasses import replace
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from isotrace.attribution.ablation import ablated as ablated_by
from isotrace.attribution.ablation import feature_values
from isotrace.dictionaries.build import build, configure
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.domains.molecule.tokenizer import build_tokenizer
from isotrace.subjects.families import RMS_NORM
from isotrace.subjects.families.native import molformer, progen, smited
from isotrace.subjects.probe import Pool, Probe, ProbeConfig
from isotrace.subjects.subject import Batch, Subject, load_subject
from isotrace.subjects.targets import Target, parse_target

_ESM = {"mask_token_id": 4, "token_dropout": False, "position_embedding_type": "rotary", "emb_layer_norm_before": False}
_BART = {"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
         "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}  # fmt: skip
_T5 = {"num_layers": 1, "num_decoder_layers": 2, "num_heads": 2, "d_kv": 6, "d_ff": 24,
       "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}  # fmt: skip
MODELS: dict[str, tuple[str, dict]] = {
    "esm-rotary": ("Esm", _ESM),
    "esm-token-dropout": ("Esm", _ESM | {"token_dropout": True}),
    "esm-absolute": ("Esm", _ESM | {"position_embedding_type": "absolute", "emb_layer_norm_before": True}),
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {}),
    "albert": ("Albert", {"embedding_size": 10}),
    "modernbert": ("ModernBert", {"global_attn_every_n_layers": 2, "local_attention": 4, "cls_token_id": 0,
                                  "sep_token_id": 2}),
    "deberta-v2": ("DebertaV2", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4,
                                 "position_biased_input": False, "norm_rel_ebd": "layer_norm", "share_att_key": True}),
    "gpt2": ("GPT2", {"n_inner": 24}),
    "llama": ("Llama", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "bart": ("Bart", _BART | {"scale_embedding": True}),
    "t5-relu": ("T5", _T5),
    "t5-gated": ("T5", _T5 | {"feed_forward_proj": "gated-gelu", "num_layers": 2, "num_decoder_layers": 1}),
    "esmc": ("Esmc", {"mask_token_id": 4}),
    "molformer": ("Molformer", {"num_random_features": 6, "layer_norm_eps": 1e-5}),
    "smited": ("SmiTed", {"num_feats": 6}),
    "progen": ("ProGen", {"num_attention_heads": 8, "rotary_dim": 2, "n_inner": 24}),
}  # fmt: skip
"""Variant → (prefix of the names of classes, settings of its own)."""
VARIANTS = tuple(MODELS)
CAUSAL = ("gpt2", "llama", "progen")
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


def class_named(name: str) -> type:
    """Of transformers, or of isotrace's own where transformers has none."""
    return next(getattr(place, name) for place in (transformers, molformer, progen, smited) if hasattr(place, name))


def tiny_model(variant: str, head: str | None = None, **changes) -> PreTrainedModel:
    """The language model of a variant, or that with another `head` (`ForSequenceClassification`), with random weights;
    `changes` go to its config."""
    torch.manual_seed(SEED)
    name, own = MODELS[variant]
    shape = {
        "vocab_size": len(tokenizer()),
        "hidden_size": D_MODEL,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": MAX_POSITIONS,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    if name in ("Bart", "T5"):  # these name their sizes differently, and have two stacks
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            shape.pop(key)
        shape |= {"d_model": D_MODEL, "decoder_start_token_id": 2}
    if name == "T5":
        shape.pop("max_position_embeddings")
    heads = {"GPT2": "LMHeadModel", "Llama": "ForCausalLM", "ProGen": "ForCausalLM"}
    heads |= dict.fromkeys(("Bart", "T5"), "ForConditionalGeneration")
    head = head or heads.get(name, "ForMaskedLM")
    config = class_named(f"{name}Config")(**shape | own | changes)
    model = class_named(name + head)(config)
    perturb(model, 0.25, seed=SEED + [*MODELS].index(variant))
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


class ExactRMSNorm(nn.Module):
    """transformers computes RMS norms in float32 whatever the weights are, which would bound what float64 can show."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt())


def in_float64(subject: Subject) -> Subject:
    subject.model.double()
    for module in subject.norms.values():
        if subject.family.norm is RMS_NORM:
            module.__class__ = ExactRMSNorm
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


def random_probe(subject: Subject, seed: int = 0, layers: tuple[int, ...] = (), pool: Pool = "mean") -> Probe:
    """Of `layers`, by default the final hidden state."""
    layers = layers or (subject.n_layers,)
    generator = torch.Generator().manual_seed(seed)
    width = len(layers) * subject.d_model * (2 if pool == "mean+max" else 1)
    about = {"name": "tiny", "description": "a random probe", "task": "regression", "outputs": ("tiny",), "unit": "1"}
    config = ProbeConfig(
        "isotrace-probe", 2, **about, layers=layers, pool=pool, subject_weights_sha256=subject.files.weights_sha256
    )
    return Probe(config, torch.randn(width, 1, generator=generator), torch.tensor([0.7]))


def make_target(kind: str, subject: Subject, batch: Batch) -> Target:
    """mask, diff or probe, on position 2 of SMILES, or mutation, on positions 2 and 4."""
    if kind == "mutation":
        carbon, oxygen, nitrogen = map(subject.token_id, "CON")
        swaps = ((2, carbon, oxygen), (4, oxygen, nitrogen))
        return Target("mutation", "mutation:C2O:O4N", "a double change", "log-odds", swaps=swaps)
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


def ablated(subject, dictionary, batch, target, sets, *, complement, ablation, chunk=24) -> Tensor:
    """Features of the dictionary ablated in the running subject."""
    parts = Features(dictionary), feature_values(dictionary, ablation)
    return ablated_by(subject, *parts, batch, target, sets, complement=complement, chunk=chunk)


def with_a_dormant_neuron(subject):
    """Neurons of layer 1: 2 is read and varies, 0 varies alike and is not read, 1 is read and constant (Makelov). What
    1 and 2 write is orthogonal to all else that is written, so that their own axes are read."""
    first, last = subject.mlp(1)
    first.weight.data[0], first.bias.data[0] = first.weight[2], first.bias[2]
    first.weight.data[1], first.bias.data[1] = 0, 1
    frame = torch.linalg.qr(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)))[0]
    last.weight.data -= frame @ frame.T @ last.weight
    last.weight.data[:, 0] = 0
    last.weight.data[:, [1, 2]] = 6 * frame
    return subject
