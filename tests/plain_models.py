"""Tiny subjects as plain transformers models, with the modules at every hookpoint written out by hand."""

from functools import cache

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

KINDS = ("resid_pre", "head_out", "attn_out", "mlp_in", "neuron", "mlp_out", "resid_post")
AUTO = dict.fromkeys(("gpt2", "llama", "progen"), AutoModelForCausalLM)
AUTO |= dict.fromkeys(("bart", "t5-relu", "t5-gated"), AutoModelForSeq2SeqLM)


@cache
def plain(variant, folder):
    """The model as transformers loads it, with its own attention; `folder` was loaded as a subject before, so that
    transformers knows the classes that are isotrace's own."""
    auto = AUTO.get(variant, AutoModelForMaskedLM)
    return auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def blocks(variant, model):
    """(block, output of attention, what the MLP begins with, its last linear map) of every layer."""
    family = variant.partition("-")[0]
    if family in ("bert", "esm", "roberta", "deberta", "molformer"):
        layers = getattr(model, family).encoder.layer
        return [(b, b.attention.output.dense, b.intermediate.dense, b.output.dense) for b in layers]
    if family == "albert":  # one per layer once loaded as a subject, one for all layers as transformers has it
        groups = [g.albert_layers[0] for g in model.albert.encoder.albert_layer_groups]
        return [(b, b.attention.dense, b.ffn, b.ffn_output) for b in groups]
    if family == "modernbert":
        return [(b, b.attn.Wo, b.mlp.Wi, b.mlp.Wo) for b in model.model.layers]
    if family == "esmc":
        return [(b, b.self_attn.o_proj, b.mlp, b.mlp.down_proj) for b in model.esmc.layers]
    if family == "smited":
        layers = model.smi_ted.encoder["blocks"]["layers"]
        return [(b, b.attention.out_projection, b.linear1, b.linear2) for b in layers]
    if family == "gpt2":
        return [(b, b.attn.c_proj, b.mlp.c_fc, b.mlp.c_proj) for b in model.transformer.h]
    if family == "progen":
        return [(b, b.attn.out_proj, b.mlp, b.mlp.fc_out) for b in model.transformer.h]
    if family == "llama":
        return [(b, b.self_attn.o_proj, b.mlp, b.mlp.down_proj) for b in model.model.layers]
    if family == "bart":
        both = [*model.model.encoder.layers, *model.model.decoder.layers]
        return [(b, b.self_attn.out_proj, b.fc1, b.fc2) for b in both]
    both = [*model.encoder.block, *model.decoder.block]
    mlps = [block.layer[-1].DenseReluDense for block in both]
    return [(b, b.layer[0].SelfAttention.o, mlp, mlp.wo) for b, mlp in zip(both, mlps, strict=True)]


def norms(variant, block):
    """(the norm of an encoder block before or behind its attention's sum, that of its MLP), whether the norms stand
    on the stream. Where attention and MLP read one norm, it is the first, and there is no second."""
    family = variant.partition("-")[0]
    if family in ("bert", "roberta", "deberta", "molformer"):
        return block.attention.output.LayerNorm, block.output.LayerNorm, True
    if family == "albert":
        return block.attention.LayerNorm, block.full_layer_layer_norm, True
    if family == "smited":
        return block.norm1, block.norm2, True
    if family == "progen":
        return block.ln_1, None, False
    if family == "bart":
        return block.self_attn_layer_norm, block.final_layer_norm, True
    found = {
        "esm": ("attention.LayerNorm", "LayerNorm"),
        "modernbert": ("attn_norm", "mlp_norm"),
        "esmc": ("input_layernorm", "post_attention_layernorm"),
        "gpt2": ("ln_1", "ln_2"),
        "llama": ("input_layernorm", "post_attention_layernorm"),
        "t5": ("layer.0.layer_norm", "layer.1.layer_norm"),
    }[family]
    return *(block.get_submodule(path) for path in found), False


def scale(block):
    """What a block divides by what attention and MLP give, before it adds them to the stream."""
    return getattr(block, "scaling_factor", 1.0)


def module(variant, model, layer, kind):
    """(module, True if the hookpoint is its input)."""
    block, attention, first, last = blocks(variant, model)[layer]
    return {
        "resid_pre": (block, True),
        "head_out": (attention, True),
        "attn_out": (attention, False),
        "mlp_in": (first, True),
        "neuron": (last, True),
        "mlp_out": (last, False),
        "resid_post": (block, False),
    }[kind]


def watch(found, is_input, take):
    """Calls `take` with the tensor at the hookpoint whenever the module runs; returns the handle of the hook."""
    if is_input:
        return found.register_forward_pre_hook(lambda _, args: take(args[0].clone()))
    return found.register_forward_hook(lambda _, args, out: take((out[0] if isinstance(out, tuple) else out).clone()))


def changed(own, is_input, change):
    """A forward like `own` with its input, or what it returns to the stream, changed."""
    if is_input:
        return lambda x, *args, **kwargs: own(change(x), *args, **kwargs)

    def forward(*args, **kwargs):
        out = own(*args, **kwargs)
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    return forward


def run(variant, model, batch):
    """(final hidden state, logits) of the plain model; encoder–decoders read the tokens shifted in their decoder."""
    given, seen = {}, []
    final = model.base_model
    if variant in ("bart", "t5-relu", "t5-gated"):
        start = torch.full((len(batch.ids), 1), model.config.decoder_start_token_id)
        given["decoder_input_ids"] = torch.cat([start, batch.ids[:, :-1]], 1)
        final = final.decoder
    handle = final.register_forward_hook(lambda _, args, out: seen.append(out.last_hidden_state))
    logits = model(input_ids=batch.ids, attention_mask=batch.mask.long(), **given).logits
    handle.remove()
    return seen[0], logits
