"""Small random dictionaries of every kind that other tools have, saved by the tools themselves, and their functions.

Each generator yields (kind, save into a folder, function, number of layers). A function takes x `[n_layers, tokens, d]`
to features `[n_layers, tokens, F]` and reconstruction `[n_layers, tokens, d_out]`; `…_load` gives that of a folder.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

D, F, K, LAYERS = 6, 12, 3, 3
Function = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Made = Iterator[tuple[str, Callable[[Path], object], Function, int]]


def randomise(module: torch.nn.Module, names: tuple[str, ...] = ()) -> None:
    """Every parameter, and the buffers named, random and none of them zero; biases too, so that folding matters."""
    for name, value in [*module.named_parameters(), *((n, b) for n, b in module.named_buffers() if n in names)]:
        scale = 0.5 if value.ndim > 1 else 0.3
        value.data = scale * torch.randn(value.shape) + (0.1 if "threshold" in name else 0.0)
        if "threshold" in name:
            value.data = value.data.abs()


def single(module: torch.nn.Module) -> Function:
    """Features and reconstruction of a one-layer module on x `[1, tokens, d]`."""
    return lambda x: (module.encode(x[0])[None], module(x[0])[None])


# ---- SAELens


def saelens_load(folder: Path) -> Function:
    from sae_lens import SAE

    return single(SAE.load_from_disk(folder, device="cpu"))


def saelens() -> Made:
    from sae_lens import SAE
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    plain = {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu"}
    site = {"model_name": "tiny", "hook_name": "blocks.2.hook_resid_post"}
    kinds = {
        "standard": ("standard", {}),
        "standard_no_pre_bias": ("standard", {"apply_b_dec_to_input": False}),
        "standard_layer_norm": ("standard", {"normalize_activations": "layer_norm"}),
        "topk": ("topk", {"k": K}),
        "topk_decoder_norm": ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
        "jumprelu": ("jumprelu", {}),
        "gated": ("gated", {}),
        "transcoder": ("transcoder", {"d_out": 4, "apply_b_dec_to_input": False}),
        "skip_transcoder": ("skip_transcoder", {"d_out": 4, "apply_b_dec_to_input": False}),
        "jumprelu_transcoder": ("jumprelu_transcoder", {"d_out": 4, "apply_b_dec_to_input": False}),
        "jumprelu_skip_transcoder": ("jumprelu_skip_transcoder", {"d_out": 4, "apply_b_dec_to_input": False}),
    }
    for kind, (name, changes) in kinds.items():
        cls, config = SAE_CLASS_REGISTRY[name]
        cfg = config(**(plain | changes))
        for key, value in site.items():
            setattr(cfg.metadata, key, value)
        if "transcoder" in name:
            cfg.metadata.hook_name = "blocks.2.mlp.hook_in"
            cfg.metadata.hook_name_out = "blocks.2.hook_mlp_out"
        sae = cls(cfg)
        randomise(sae)
        yield kind, sae.save_model, single(sae), 1
    for kind, changes in {
        "batchtopk": {"k": float(K)},
        "matryoshka_batchtopk": {"k": float(K), "matryoshka_widths": [4, F]},
    }.items():
        cls, config = SAE_TRAINING_CLASS_REGISTRY[kind]
        training = cls(config(**(plain | changes)))
        randomise(training)
        training.topk_threshold = torch.tensor(0.4, dtype=torch.double)
        for key, value in site.items():
            setattr(training.cfg.metadata, key, value)
        with TemporaryDirectory() as scratch:  # what it is at inference is what it saves
            training.save_inference_model(scratch)
            inference = SAE.load_from_disk(scratch, device="cpu")
        yield kind, training.save_inference_model, single(inference), 1


# ---- sparsify


def sparsify_function(coders: list) -> Function:
    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, outputs = [], []
        for coder, tokens in zip(coders, x, strict=True):
            encoded = coder.encode(tokens)
            features.append(torch.zeros(len(tokens), coder.num_latents).scatter(1, encoded[1], encoded[0]))
            outputs.append(coder(tokens, tokens).sae_out)
        return torch.stack(features), torch.stack(outputs)

    return run


def sparsify_run(folder: Path) -> list[Path]:
    return sorted((f for f in folder.iterdir() if f.is_dir()), key=lambda f: int(f.name.split(".")[1]))


def sparsify_load(folder: Path) -> Function:
    from sparsify import SparseCoder

    return sparsify_function([SparseCoder.load_from_disk(f) for f in sparsify_run(folder)])


def sparsify() -> Made:
    from sparsify import SparseCoder, SparseCoderConfig

    kinds = {
        "sae": ({"transcode": False}, "layers.{}"),
        "transcoder": ({"transcode": True}, "layers.{}.mlp"),
        "skip_transcoder": ({"transcode": True, "skip_connection": True}, "layers.{}.mlp"),
    }
    for kind, (changes, name) in kinds.items():
        coders = []
        for _ in range(2):
            coder = SparseCoder(D, SparseCoderConfig(num_latents=F, k=K, **changes))
            randomise(coder)
            coders.append(coder)

        def save(folder: Path, coders=coders, name=name) -> None:
            for layer, coder in zip((1, 4), coders, strict=True):
                coder.save_to_disk(folder / name.format(layer))

        yield kind, save, sparsify_function(coders), 2


# ---- circuit-tracer


def circuit_tracer_config(folder: Path, kind: str, **more) -> None:
    import yaml

    about = {"model_kind": kind, "model_name": "tiny", "scan": "tiny"}
    about |= {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    (folder / "config.yaml").write_text(yaml.safe_dump(about | more))


def circuit_tracer_load(folder: Path) -> Function:
    import yaml
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set

    config = yaml.safe_load((folder / "config.yaml").read_text())
    hooks = config["feature_input_hook"], config["feature_output_hook"]
    if config["model_kind"] == "cross_layer_transcoder":
        clt = load_clt(str(folder), *hooks, dtype=torch.float32, device=torch.device("cpu"))
        return lambda x: (clt.encode(x), clt(x))
    paths = {i: str(folder / f"layer_{i}.safetensors") for i in range(len(list(folder.glob("layer_*.safetensors"))))}
    plts = load_transcoder_set(paths, "tiny", *hooks, device=torch.device("cpu"))
    return lambda x: (plts.encode(x), plts.decode(plts.encode(x), x))


def circuit_tracer() -> Made:
    from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet

    cpu = {"device": torch.device("cpu"), "dtype": torch.float32}
    hooks = ("hook_resid_mid", "hook_mlp_out")
    for kind, activation, skip in (
        ("relu", lambda: torch.nn.functional.relu, False),
        ("jumprelu", lambda: JumpReLU(torch.zeros(F)), False),
        ("topk", lambda: TopK(K), False),
        ("skip", lambda: torch.nn.functional.relu, True),
    ):
        members = {i: SingleLayerTranscoder(D, F, activation(), i, skip, **cpu) for i in range(LAYERS)}
        for member in members.values():
            randomise(member)
            if kind == "topk":
                member.b_enc.data += 5  # its TopK has no ReLU: keep what is chosen positive
        plts = TranscoderSet(members, *hooks)

        def save(folder: Path, plts=plts, kind=kind) -> None:
            plts.to_safetensors(str(folder))
            circuit_tracer_config(
                folder, "transcoder_set", **({"activation": "topk", "k": K} if kind == "topk" else {})
            )

        yield f"plt_{kind}", save, lambda x, plts=plts: (plts.encode(x), plts.decode(plts.encode(x), x)), LAYERS
    for kind in ("relu", "jump_relu"):
        clt = CrossLayerTranscoder(LAYERS, F, D, kind, False, lazy_decoder=False, **cpu)
        randomise(clt)

        def save(folder: Path, clt=clt) -> None:
            clt.to_safetensors(str(folder))
            circuit_tracer_config(folder, "cross_layer_transcoder")

        yield f"clt_{kind}", save, lambda x, clt=clt: (clt.encode(x), clt(x)), LAYERS


# ---- dictionary_learning


def dictionary_learning_load(folder: Path) -> Function:
    from dictionary_learning.utils import load_dictionary

    return single(load_dictionary(str(folder), device="cpu")[0])


def dictionary_learning() -> Made:
    from dictionary_learning import dictionary as base
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    made = [
        base.AutoEncoder(D, F),
        base.AutoEncoderNew(D, F),
        base.GatedAutoEncoder(D, F),
        base.JumpReluAutoEncoder(D, F),
        AutoEncoderTopK(D, F, K),
        BatchTopKSAE(D, F, K),
        MatryoshkaBatchTopKSAE(D, F, K, [4, F - 4]),
    ]
    for module in made:
        name = type(module).__name__
        randomise(module, ("threshold",) if "Batch" in name else ())
        if name == "AutoEncoder":  # its loader rescales anything else
            module.decoder.weight.data /= module.decoder.weight.norm(dim=0)

        def save(folder: Path, module=module, name=name) -> None:
            trainer = {"dict_class": name, "activation_dim": D, "dict_size": F, "layer": 2, "lm_name": "tiny"}
            trainer |= {"submodule_name": "resid_post_layer_2"} | ({"k": K} if hasattr(module, "k") else {})
            (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
            torch.save(module.state_dict(), folder / "ae.pt")

        yield name, save, single(module), 1
