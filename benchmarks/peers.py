"""The training steps compared in `train_step.py`: ours, dense cross-layer transcoders, and SAE libraries.

Each is a class built from (shape, dtype) with `step(x, y) -> loss`: forward, loss, backward, the constraints the
peer applies, optimiser. x, y `[n_layers, tokens, d]` float32; the SAE libraries take one layer and reconstruct x.
"""

import warnings
from contextlib import nullcontext, redirect_stdout
from io import StringIO

import torch
from torch import nn
from torch.nn import functional

from isotrace.kernels import sparse_decode, sparse_encode

LEARNING_RATE = 4e-4


def autocast(dtype: torch.dtype):
    return torch.autocast(device(), dtype) if dtype == torch.bfloat16 else nullcontext()


def device() -> str:
    return torch.get_default_device().type


def fve_loss(y, m):
    """Σ_t ‖y_t − m_t‖² / Var(y_t)."""
    variance = (y - y.mean(1, keepdim=True)).square().mean((1, 2))
    errors = [functional.mse_loss(mine, wanted) for mine, wanted in zip(m.unbind(), y, strict=True)]
    return (torch.stack(errors) / variance).sum()


class Ours:
    """Sparse kernels, loss per target over its variance, gradient norm clipped at 1, fused Adam, float32 weights."""

    name = "isotrace"

    def __init__(self, shape, dtype: torch.dtype, rescore: bool = False, backend: str = "auto") -> None:
        layers = range(shape.n_layers)
        self.shape, self.options = shape, {"dtype": dtype, "rescore": rescore, "backend": backend}
        self.W_enc = [unit_rows(shape.n_features, shape.d).T.requires_grad_() for _ in layers]
        self.b_enc = [torch.zeros(shape.n_features, requires_grad=True) for _ in layers]
        self.W_dec = [
            (torch.randn(shape.n_features, shape.targets(s) * shape.d) * 0.02).requires_grad_() for s in layers
        ]
        self.b_dec = torch.zeros(shape.n_layers, 1, shape.d, requires_grad=True)
        self.parameters = [*self.W_enc, *self.b_enc, *self.W_dec, self.b_dec]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE, fused=True)

    def forward(self, x):
        layers = zip(x, self.W_enc, self.b_enc, strict=True)
        encoded = [sparse_encode(rows, W, b, self.shape.k, **self.options) for rows, W, b in layers]
        values, indices = [e[0] for e in encoded], [e[1] for e in encoded]
        backend = self.options["backend"]
        return sparse_decode(values, indices, self.W_dec, self.shape.d, self.shape.window, backend=backend) + self.b_dec

    def step(self, x, y) -> float:
        loss = fve_loss(y, self.forward(x))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if norm > 1:  # as `training.trainer` does
            nn.utils.clip_grads_with_norm_(self.parameters, 1.0, norm)
        self.optimizer.step()
        return loss.item()


def unit_rows(n: int, d: int):
    return functional.normalize(torch.randn(n, d), dim=1)


class DenseCLT:
    """Layer-normalised inputs, dense encode, TopK by `torch.topk` and scatter, a dense product for each (source,
    target) pair with its own weight, mean squared error, AdamW."""

    name = "dense CLT"

    def __init__(self, shape, dtype: torch.dtype) -> None:
        layers = range(shape.n_layers)
        self.shape, self.dtype = shape, dtype
        self.W_enc = nn.ParameterList(unit_rows(shape.n_features, shape.d).T.contiguous() for _ in layers)
        self.b_enc = nn.ParameterList(torch.zeros(shape.n_features) for _ in layers)
        self.pairs = [(s, t) for s in layers for t in layers if s <= t < s + shape.targets(s)]
        self.W_dec = nn.ParameterList(torch.randn(shape.n_features, shape.d) * 0.02 for _ in self.pairs)
        self.b_dec = nn.ParameterList(torch.zeros(shape.d) for _ in layers)
        parameters = [*self.W_enc, *self.b_enc, *self.W_dec, *self.b_dec]
        self.optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)

    def forward(self, x):
        active = []
        for rows, W, b in zip(x, self.W_enc, self.b_enc, strict=True):
            h = torch.relu(torch.einsum("nd,df->nf", functional.layer_norm(rows, rows.shape[-1:]), W) + b)
            values, indices = torch.topk(h, self.shape.k)
            active.append(torch.zeros_like(h).scatter(-1, indices, values))
        outputs = [b.expand(len(x[0]), -1) for b in self.b_dec]
        for (source, target), W in zip(self.pairs, self.W_dec, strict=True):
            outputs[target] = outputs[target] + torch.einsum("nf,fd->nd", active[source], W)
        return torch.stack(outputs)

    def step(self, x, y) -> float:
        with autocast(self.dtype):
            loss = functional.mse_loss(self.forward(x).float(), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class Sparsify:
    """`eai-sparsify`: its SparseCoder, FVU loss, unit-norm decoder and projected gradient, as its trainer runs them;
    Adam, one of its trainer's optimisers."""

    name = "sparsify"

    def __init__(self, shape, dtype: torch.dtype) -> None:
        with redirect_stdout(StringIO()):
            from sparsify import SparseCoder, SparseCoderConfig
        self.dtype = dtype
        self.coder = SparseCoder(shape.d, SparseCoderConfig(num_latents=shape.n_features, k=shape.k), device())
        self.optimizer = torch.optim.Adam(self.coder.parameters(), lr=LEARNING_RATE)
        self.fired = torch.zeros(shape.n_features, dtype=torch.bool)

    def step(self, x, y) -> float:
        self.coder.set_decoder_norm_to_unit_norm()
        with autocast(self.dtype):
            out = self.coder(x[0], y=x[0], total_variance=(x[0] - x[0].mean(0)).pow(2).sum())
        self.fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return out.fvu.item()


class SAELens:
    """`sae-lens`: TopKTrainingSAE driven by its own SAETrainer.step (auxiliary loss, clipping and Adam included)."""

    name = "SAELens"

    def __init__(self, shape, dtype: torch.dtype) -> None:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=shape.d, d_sae=shape.n_features, k=shape.k, device=device()))
        config = SAETrainerConfig(
            total_training_samples=10**9,
            train_batch_size_samples=2048,
            lr_end=LEARNING_RATE,
            lr=LEARNING_RATE,
            autocast=dtype == torch.bfloat16,
            device=device(),
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.trainer = SAETrainer(config, sae, iter(()))

    def step(self, x, y) -> float:
        return self.trainer.step(x[0]).loss.item()


class DictionaryLearning:
    """`dictionary-learning`: TopKTrainer.update. It has no mixed precision on the CPU; under bfloat16 its step runs
    inside autocast."""

    name = "dictionary_learning"

    def __init__(self, shape, dtype: torch.dtype) -> None:
        from dictionary_learning.trainers.top_k import TopKTrainer

        self.dtype, self.count = dtype, 0
        self.trainer = TopKTrainer(
            steps=10**6,
            activation_dim=shape.d,
            dict_size=shape.n_features,
            k=shape.k,
            layer=0,
            lm_name="benchmark",
            lr=LEARNING_RATE,
            device=device(),
        )

    def step(self, x, y) -> float:
        self.count += 1
        with autocast(self.dtype):
            return self.trainer.update(self.count, x[0])


class CLTForge:
    """CLT-Forge's cross-layer transcoder, driven by its own trainer's step: JumpReLU, dense products for all pairs at
    once, squared error, penalties on activations and on dead features, clipping at 1, Adam, with the settings it ships
    for GPT-2. Its activations are `[tokens, n_layers, d]` and lie ready. Under bfloat16 weights and optimiser are
    bfloat16 too, as it trains; it has no mixed precision on the CPU."""

    name = "CLT-Forge"

    def __init__(self, shape, dtype: torch.dtype) -> None:
        with redirect_stdout(StringIO()):
            from clt_forge.clt import CLT
            from clt_forge.config import CLTConfig, CLTTrainingRunnerConfig
            from clt_forge.training.clt_trainer import CLTTrainer

            steps, tokens = 10**6, 2_048
            config = CLTTrainingRunnerConfig(  # pyright: ignore[reportCallIssue] (ddp and the like follow from the setup)
                device=device(), dtype=str(dtype).removeprefix("torch."), distributed_setup="None", log_to_wandb=False,
                logger_verbose=False, n_checkpoints=0, d_in=shape.d, d_latent=shape.n_features, lr=LEARNING_RATE,
                adam_beta1=0.9, total_training_tokens=steps * tokens, train_batch_size_tokens=tokens,
                l0_coefficient=2.0, dead_penalty_coef=1e-5,
            )  # fmt: skip
            clt = CLT(config.create_sub_config(CLTConfig, n_layers=shape.n_layers))
            self.trainer = CLTTrainer(clt, None, config, lambda *_: None)
        self.dtype, self.given = dtype, None

    def step(self, x, y) -> float:
        if self.given is not x:
            self.given, self.laid = x, [rows.transpose(0, 1).to(self.dtype).contiguous() for rows in (x, y)]
        return self.trainer._compute_training_step_loss(*self.laid).mse_loss.item()


def peers(shape, dtype: torch.dtype) -> tuple[list, dict[str, str]]:
    """(peers for the shape, why others are missing)."""
    found: list = [DenseCLT(shape, dtype)]
    missing = {}
    if shape.window < shape.n_layers:
        return found, {CLTForge.name: "has no window"}
    for kind in (Sparsify, SAELens, DictionaryLearning) if shape.n_layers == 1 else (CLTForge,):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append(kind(shape, dtype))
        except ImportError as error:
            missing[kind.name] = f"not installed ({error})"
    return found, missing
