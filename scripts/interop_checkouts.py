"""The tools of `interop_tools` that are in no package index: put a checkout of each on PYTHONPATH."""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from interop_tools import LAYERS, D, F, Function, K, Made, randomise, sparsify_run

SCALES = ("estimated_norm_scaling_factor_in", "estimated_norm_scaling_factor_out")


def clt_function(coders: list) -> Function:
    """Calls the decoders in the order and with the arguments of the fork's CrossLayerRunner, but for `no_extras`, with
    which that commit of its own MidDecoder fails."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        open_decoders, features, outputs = [], [], []
        for coder, tokens in zip(coders, x, strict=True):
            own = coder(tokens, tokens, return_mid_decoder=True)
            features.append(torch.zeros(len(tokens), coder.num_latents).scatter(1, own.latent_indices, own.latent_acts))
            total = torch.zeros_like(tokens)
            ending = [middle for middle in [*open_decoders, own] if middle.will_be_last]
            for middle in open_decoders:
                total = total + middle(tokens, denormalize=False).sae_out
            outputs.append(own(tokens, addition=total).sae_out)
            open_decoders = [middle for middle in [*open_decoders, own] if not any(middle is e for e in ending)]
        return torch.stack(features), torch.stack(outputs)

    return run


def clt_training_load(folder: Path) -> Function:
    from sparsify.sparse_coder import SparseCoder

    return clt_function([SparseCoder.load_from_disk(f) for f in sparsify_run(folder)])


def clt_training() -> Made:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    kinds = {
        "crosslayer": {"window": LAYERS},
        "windowed": {"window": 2, "post_encoder_scale": True},
        "normalized": {"window": LAYERS, "normalize_io": True},
        "skip": {"window": 0, "skip_connection": True},
    }
    for kind, settings in kinds.items():
        coders, window = [], settings.pop("window")
        for s in range(LAYERS):
            n_targets = min(window, LAYERS - s)
            coder = SparseCoder(
                D, SparseCoderConfig(num_latents=F, k=K, transcode=True, n_targets=n_targets, **settings)
            )
            randomise(coder)
            for name, value in coder.named_parameters():
                if "post_enc" in name and "scale" not in name:
                    value.data.zero_()
            for name, value in coder.named_buffers():
                value.fill_(1.5 if name == "in_norm" else 2.5)
            coders.append(coder)

        def save(folder: Path, coders=coders) -> None:
            for s, coder in enumerate(coders):
                # its own save_to_disk, without a device mesh, refuses W_dec, which is W_decs.0 again: save copies
                place = folder / f"layers.{s}.mlp"
                place.mkdir()
                save_file({n: v.clone() for n, v in coder.state_dict().items()}, place / "sae.safetensors")
                (place / "cfg.json").write_text(json.dumps(coder.cfg.to_dict() | {"d_in": D}))

        yield kind, save, clt_function(coders), LAYERS


def interplm() -> Made:
    from interplm.sae import dictionary as base

    for kind, module in {
        "relu": base.ReLUSAE(D, F),
        "relu_tied": base.ReLUSAE_Tied(D, F),
        "jumprelu": base.JumpReLUSAE(D, F),
        "topk": base.TopKSAE(D, F, K),
    }.items():
        randomise(module)
        if kind != "topk":
            module.activation_rescale_factor.copy_(torch.rand(F) + 0.5)
        encode = {"normalize_features": kind != "topk"}

        def run(x: torch.Tensor, module=module, encode=encode) -> tuple[torch.Tensor, torch.Tensor]:
            return module.encode(x[0], **encode)[None], module(x[0])[None]

        def save(folder: Path, module=module) -> None:
            (folder / "layer_3").mkdir()
            torch.save(module.state_dict(), folder / "layer_3" / "ae_normalized.pt")

        yield kind, save, run, 1


def interprot() -> Made:
    from interprot.sae_model import SparseAutoencoder

    module = SparseAutoencoder(D, F, k=K)
    randomise(module)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return module.get_acts(x), module.forward_val(x)

    yield "topk", lambda folder: save_file(dict(module.state_dict()), folder / "sae.safetensors"), run, 1
    hyper = {"args": argparse.Namespace(k=K, layer_to_use=24)}
    state = {f"sae_model.{name}": value for name, value in module.state_dict().items()}
    lightning = {"state_dict": state, "hyper_parameters": hyper, "epoch": 1}
    yield "lightning", lambda folder: torch.save(lightning, folder / "sae.ckpt"), run, 1


def protomech() -> Made:
    from block_clt_model import BlockCrossLayerTranscoder
    from clt_model import CrossLayerTranscoder
    from plt_model import PerLayerTranscoder

    for kind, module in {
        "clt": CrossLayerTranscoder(LAYERS, D, F, K),
        "clt_6": CrossLayerTranscoder(6, D, D, K),
        "block": BlockCrossLayerTranscoder(4, D, F, K, block_size=2),
        "plt": PerLayerTranscoder(LAYERS, D, F, K),
    }.items():
        randomise(module)
        prefix = "plt" if kind == "plt" else "clt"

        def run(x: torch.Tensor, module=module) -> tuple[torch.Tensor, torch.Tensor]:
            features = []
            for layer, tokens in enumerate(x):
                seen = module.LN(tokens)[0] - module.b_pre[layer]
                hidden = module.encoders[layer](seen) + module.b_enc[layer]
                features.append(module.topK_activation(hidden, module.k))
            return torch.stack(features), module(x.transpose(0, 1))[0].transpose(0, 1)

        def save(folder: Path, module=module, prefix=prefix) -> None:
            state = {f"{prefix}.{name}": value.clone() for name, value in module.state_dict().items()}
            state["esm_model.embed_tokens.weight"] = torch.zeros(2, 2)
            hyper = {"args": argparse.Namespace(k=K)}
            torch.save({"state_dict": state, "hyper_parameters": hyper}, folder / "last.ckpt")

        yield kind, save, run, module.num_layers


def clt_forge() -> Made:
    """As its own analysis runs a checkpoint: inputs scaled, outputs scaled back (clt_forge/attribution/loading.py)."""
    from clt_forge.clt import CLT
    from clt_forge.config import CLTConfig

    base = CLTConfig(
        device="cpu",
        dtype="float32",
        seed=0,
        model_name="tiny",
        d_in=D,
        d_latent=F,
        n_layers=LAYERS,
        jumprelu_bandwidth=1.0,
        jumprelu_init_threshold=0.03,
        normalize_decoder=False,
        dead_feature_window=250,
        cross_layer_decoders=True,
        context_size=16,
        l0_coefficient=2.0,
    )
    for kind, changes in {
        "crosslayer": {},
        "per_layer": {"cross_layer_decoders": False},
        "bfloat16": {"dtype": "bfloat16"},
        "sharded": {"feature_sharding": True},
    }.items():
        cfg = base.model_copy(update=changes)
        stored = CLT(cfg)
        randomise(stored, SCALES)
        stored.log_threshold.data -= 1.0  # a threshold of about 0.3
        for name in SCALES:
            getattr(stored, name).abs_().add_(0.5)
        # what stands in the file is run in float32, in one process
        module = CLT(cfg.model_copy(update={"feature_sharding": False, "dtype": "float32"}))
        module.load_state_dict(stored.state_dict())

        def run(x: torch.Tensor, module=module) -> tuple[torch.Tensor, torch.Tensor]:
            scale_in, scale_out = (getattr(module, name)[:, None] for name in SCALES)
            features = module.encode(x.transpose(0, 1) * scale_in)[0]
            return features.transpose(0, 1), (module.decode(features) / scale_out).transpose(0, 1)

        def save(folder: Path, stored=stored, cfg=cfg) -> None:
            if not cfg.feature_sharding:
                stored.save_model(str(folder))
                return
            for rank in range(2):
                shard = CLT(cfg, rank, world_size=2)
                own = shard.state_dict()
                for name, value in stored.state_dict().items():
                    for axis, size in enumerate(own[name].shape):
                        value = value.narrow(axis, rank * size, size) if size < value.shape[axis] else value
                    own[name].copy_(value)
                shard.save_model(str(folder), save_cfg=rank == 0, rank=rank)

        yield kind, save, run, LAYERS
