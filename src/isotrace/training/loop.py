"""Training a dictionary from a stream of activations.

1. measure     mean and scale of every hookpoint, and the mean activations used as ablations later
2. reconstruct blocks of activations, shuffled, drive the reconstruction loss in normalised space
3. fold        normalisation into the weights: raw MLP inputs to raw MLP outputs
4. fine-tune   (optional) the folded dictionary inside the free-running subject
5. statistics  density and mean activation of every feature

A block is harvested, shuffled by its number and used up before the next one, so a checkpoint between blocks
(weights, optimiser, position) resumes to the same weights as an uninterrupted run.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isotrace.activations.harvest import Corpus, masked_batches, mlp_activations
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.crosslayer import CrossLayerTranscoder
from isotrace.dictionaries.registry import architecture
from isotrace.errors import RunError
from isotrace.subjects.subject import Subject
from isotrace.training.config import TrainingConfig
from isotrace.training.losses import free_running, reconstruction

Callback = Callable[[dict[str, Any]], None]
STATISTICS_TOKENS = 200_000


def train_dictionary(
    subject: Subject,
    corpus: Corpus,
    config: DictionaryConfig,
    training: TrainingConfig,
    checkpoint: Path,
    on_step: Callback = lambda record: None,
) -> CrossLayerTranscoder:
    """Train (or go on training, if `checkpoint` exists) and return the dictionary, float32, folded.

    Raises RunError when the checkpoint belongs to another configuration, when the corpus or a block is too small
    for a batch, or when the loss is not finite; the last good checkpoint stays.
    """
    if not corpus.ids:
        raise RunError("the corpus holds no sequence this subject can read: give others.")
    if training.block_tokens < training.batch_tokens:
        raise RunError("block_tokens is smaller than batch_tokens: a block must hold at least one batch.")
    torch.manual_seed(training.seed)
    dictionary = architecture(config.architecture)(config)
    initialise(dictionary)
    state: dict[str, Any] = {"phase": "reconstruct", "batch": 0, "tokens": 0, "since": None}
    settings = {"dictionary": asdict(config), "training": asdict(training)}
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=training.learning_rate, betas=(0.9, 0.99), fused=True)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["settings"] != settings:
            raise RunError(f"{checkpoint} was written with other settings: use them again, or another folder.")
        state = saved["state"]
        dictionary.load_state_dict(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])

    def save() -> None:
        payload = {"settings": settings, "state": state, "weights": dictionary.state_dict()}
        temporary = checkpoint.with_suffix(".tmp")
        torch.save(payload | {"optimizer": optimizer.state_dict()}, temporary)
        temporary.rename(checkpoint)

    norms = measure(subject, corpus, training)
    if state["phase"] == "reconstruct":
        reconstruct(subject, corpus, dictionary, training, norms, optimizer, state, save, on_step)
        fold(dictionary, *norms)
        state |= {"phase": "finetune", "batch": 0, "tokens": 0}
        optimizer = torch.optim.Adam(dictionary.parameters(), lr=training.finetune_learning_rate, fused=True)
        save()
    if training.finetune_tokens:
        finetune(subject, corpus, dictionary, training, optimizer, state, save, on_step)
    statistics(subject, corpus, dictionary, training)
    return dictionary.eval().requires_grad_(False)


def initialise(dictionary: CrossLayerTranscoder) -> None:
    """Unit-norm random encoder columns; decoders start at zero, so that the first steps fit them alone."""
    for weight in dictionary.W_enc:
        torch.nn.init.normal_(weight)
        weight.data /= weight.data.norm(dim=0, keepdim=True)
    for weight in dictionary.W_dec:
        torch.nn.init.zeros_(weight)


def measure(subject: Subject, corpus: Corpus, training: TrainingConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(mean_in, scale_in, mean_out, scale_out): `[n_layers, d]`, `[n_layers]` from the stream's first blocks."""
    blocks = harvest_blocks(subject, corpus, training, start=0, salt=17)
    _, x, y, _ = next(blocks)
    result = []
    for tensor in (x, y):
        mean = tensor.mean(1)
        result += [mean, (tensor - mean[:, None]).square().mean((1, 2)).sqrt()]
    return result[0], result[1], result[2], result[3]


def harvest_blocks(
    subject: Subject, corpus: Corpus, training: TrainingConfig, start: int, salt: int = 0
) -> Iterator[tuple[int, Tensor, Tensor, int]]:
    """(next batch number, mlp_in, mlp_out `[n_layers, tokens, d]` shuffled, tokens) block after block."""
    gathered: list[tuple[Tensor, Tensor]] = []
    count = 0
    stream = masked_batches(subject, corpus, 4_096, training.mask_rate, training.seed + salt, start)
    for number, batch, _ in stream:
        x, y, _ = mlp_activations(subject, batch)
        gathered.append((x.flatten(1, 2), y.flatten(1, 2)))
        count += batch.ids.numel()
        if count >= training.block_tokens:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(number))
            x, y = (torch.cat(parts, 1)[:, order] for parts in zip(*gathered, strict=True))
            yield number + 1, x, y, count
            gathered, count = [], 0


def reconstruct(subject, corpus, dictionary, training, norms, optimizer, state, save, on_step) -> None:
    mean_in, scale_in, mean_out, scale_out = norms
    config, started, first = dictionary.config, time.time(), state["tokens"]
    since = state["since"] if state["since"] is not None else torch.zeros(config.n_layers, config.n_features)
    while state["tokens"] < training.tokens:
        following, x, y, _ = next(harvest_blocks(subject, corpus, training, state["batch"]))
        x = (x - mean_in[:, None]) / scale_in[:, None, None]
        y = (y - mean_out[:, None]) / scale_out[:, None, None]
        for at in range(0, x.shape[1] - training.batch_tokens + 1, training.batch_tokens):
            if state["tokens"] >= training.tokens:  # past its end the schedule falls below zero
                break
            part = slice(at, at + training.batch_tokens)
            rate = schedule(state["tokens"] / training.tokens, training.warmup)
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * rate
            with torch.autocast("cpu", getattr(torch, training.dtype), enabled=training.dtype != "float32"):
                dead = since > training.dead_after
                out = reconstruction(dictionary, x[:, part], y[:, part], dead, training.auxiliary, training.auxiliary_k)
            step(optimizer, dictionary, out.total)
            since = torch.where(out.fired, torch.zeros_like(since), since + training.batch_tokens)
            state["tokens"] += training.batch_tokens
            rate = (state["tokens"] - first) / (time.time() - started)
            record = {"phase": "reconstruct", "tokens": state["tokens"], "loss": out.total.item(), "tokens_per_s": rate}
            on_step(record | {"fve": out.fve.tolist(), "dead": dead.float().mean().item()})
        state |= {"batch": following, "since": since}
        save()


def finetune(subject, corpus, dictionary, training, optimizer, state, save, on_step) -> None:
    """Free-running KL and hidden-state error, the reconstruction loss kept as an anchor."""
    stream = masked_batches(
        subject, corpus, training.batch_tokens, training.mask_rate, training.seed + 1, state["batch"]
    )
    none_dead = torch.zeros(dictionary.config.n_layers, dictionary.config.n_features, dtype=torch.bool)
    started, first = time.time(), state["tokens"]
    for number, batch, chosen in stream:
        if state["tokens"] >= training.finetune_tokens:
            break
        for group in optimizer.param_groups:
            group["lr"] = training.finetune_learning_rate * schedule(state["tokens"] / training.finetune_tokens, 0.02)
        x, y, final = mlp_activations(subject, batch)
        with torch.autocast("cpu", getattr(torch, training.dtype), enabled=training.dtype != "float32"):
            anchor = reconstruction(dictionary, x.flatten(1, 2), y.flatten(1, 2), none_dead, 0.0, 1)
            drift = free_running(subject, dictionary, batch, chosen, final)
            loss = drift + 0.1 * anchor.total
        step(optimizer, dictionary, loss)
        state["tokens"] += batch.ids.numel()
        state["batch"] = number + 1
        rate = (state["tokens"] - first) / (time.time() - started)
        record = {"phase": "finetune", "tokens": state["tokens"], "loss": drift.item(), "tokens_per_s": rate}
        on_step(record | {"fve": anchor.fve.tolist()})
        if number % 100 == 99:
            save()
    save()


def step(optimizer: torch.optim.Optimizer, dictionary: CrossLayerTranscoder, loss: Tensor) -> None:
    if not torch.isfinite(loss):
        raise RunError("the loss is not finite: lower the learning rate and resume from the last checkpoint.")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(dictionary.parameters(), 1.0)
    optimizer.step()


def schedule(progress: float, warmup: float) -> float:
    """Linear warm-up, then linear decay to a twentieth of the peak."""
    return max(progress, 1e-4) / warmup if progress < warmup else 1 - 0.95 * (progress - warmup) / (1 - warmup)


@torch.no_grad()
def fold(
    dictionary: CrossLayerTranscoder, mean_in: Tensor, scale_in: Tensor, mean_out: Tensor, scale_out: Tensor
) -> None:
    """Move the normalisation into the weights; the function of raw activations stays the same."""
    config = dictionary.config
    for layer in range(config.n_layers):
        dictionary.W_enc[layer] /= scale_in[layer]
        dictionary.b_enc[layer] -= mean_in[layer] @ dictionary.W_enc[layer]
        for target in config.targets(layer):
            dictionary.decoder(layer, target).mul_(scale_out[target])
        dictionary.b_dec[layer].mul_(scale_out[layer]).add_(mean_out[layer])


@torch.no_grad()
def statistics(subject: Subject, corpus: Corpus, dictionary: CrossLayerTranscoder, training: TrainingConfig) -> None:
    """Fill `mean_activation` and `density` `[n_layers, F]` from STATISTICS_TOKENS fresh tokens of the stream."""
    config, count = dictionary.config, 0
    total, active = torch.zeros_like(dictionary.mean_activation), torch.zeros_like(dictionary.density)
    for _, x, _, tokens in harvest_blocks(subject, corpus, training, start=0, salt=29):
        for layer in range(config.n_layers):
            dense = dictionary.encode(layer, x[layer]).dense(config.n_features)
            total[layer] += dense.sum(0)
            active[layer] += (dense > 0).sum(0)
        count += tokens
        if count >= STATISTICS_TOKENS:
            break
    dictionary.mean_activation.copy_(total / count)
    dictionary.density.copy_(active / count)
