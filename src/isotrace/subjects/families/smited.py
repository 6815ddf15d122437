"""SMI-TED: MoLFormer's blocks and a token autoencoder behind them, in classes of isotrace's own."""

from typing import Any

from isotrace.subjects.families.family import Family, Native, Stack
from isotrace.subjects.families.native import smiles_tokenizer, smited
from isotrace.subjects.heads.pooled import Latent


def refuse(config: Any, has_head: bool) -> str | None:
    width, rest = divmod(config.n_embd, config.n_head)
    return "its heads are not of one even width (n_embd, n_head)" if rest or width % 2 else None


SMITED = Family(
    model_type="materials.smi-ted",
    base="smi_ted",
    objective="masked",
    words=("smi_ted.encoder.tok_emb",),
    positions=(),
    stacks=(
        Stack(
            layers="smi_ted.encoder.blocks.layers",
            attention=("attention.inner_attention.pattern",),
            attn_out="attention.out_projection",
            mlp_in="linear1",
            mlp_out="linear2",
            norms=("norm1", "norm2"),
        ),
    ),
    norms=("smi_ted.encoder.blocks.norm",),
    pattern="dropout",
    head="smi_ted.encoder.lang_model",
    head_dense="smi_ted.encoder.lang_model.embed",
    head_norm="smi_ted.encoder.lang_model.ln_f",
    head_decoder="smi_ted.encoder.lang_model.head",
    latent=Latent(
        "smi_ted.decoder.autoencoder.encoder",
        "smi_ted.decoder.lang_model",
        smited.SmiTedModel.pooled,
        smited.SmiTedModel.unpooled,
    ),
    refuse=refuse,
    native=Native(
        smited.SmiTedConfig,
        smited.SmiTedModel,
        smited.SmiTedForMaskedLM,
        headless=(),
        tokenizer=smiles_tokenizer.load,
    ),
)
