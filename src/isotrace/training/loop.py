"""Training dictionaries from a stream of activations.

1. measure     mean and scale of every hookpoint on the first block; constants from then on. A block is no larger
               than the training
2. reconstruct blocks of shuffled activations drive the reconstruction loss in normalised space
3. fold        normalisation into the weights: raw inputs to raw outputs
4. fine-tune   (optional) the folded dictionary inside the free-running subject
5. statistics  density and mean activation of every feature on fresh tokens, as many as the training had, at most
               STATISTICS_TOKENS

A block is used up before the next one is harvested, so a checkpoint between blocks (weights, optimiser, counters,
position, random state) resumes to the same weights as an uninterrupted run.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isotrace.activations.harvest import Corpus, mask_rate_of, masked_batches, mlp_activations
from isotrace.activations.stream import ActivationStream, Block, SubjectStream
from isotrace.base.errors import RunError
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.saving import require_whole_mlp
from isotrace.dictionaries.sparsity.rule import SparseActivations
from isotrace.subjects.subject import Subject
from isotrace.training.checkpoint import read_checkpoint
from isotrace.training.config import StreamConfig, TrainingConfig
from isotrace.training.losses import free_running, reconstruction
from isotrace.training.parallel import Checkpoints, Parallel
from isotrace.training.trainer import Job, Norms, Trainer, as_begun, trainer_of
from isotrace.training.world import World

Callback = Callable[[dict[str, Any]], None]
STATISTICS_TOKENS = 200_000
SHORT_BLOCKS = 8


def hookpoints_of(configs: Sequence[DictionaryConfig]) -> list[str]:
    """Every hookpoint the dictionaries read or write, once."""
    return list(dict.fromkeys(site for c in configs for site in (*c.reads, *c.writes)))


def block_tokens(jobs: Sequence[Job], stream: StreamConfig, world: World) -> int:
    """Of each process: as `stream` says, but all processes together no more than the longest training takes."""
    longest = max(-(-job.training.tokens // job.training.batch_tokens) * job.training.batch_tokens for job in jobs)
    return -(-min(stream.block_tokens, longest) // world.size)


def subject_stream(
    subject: Subject, corpus: Corpus, jobs: Sequence[Job], stream: StreamConfig, world: World
) -> SubjectStream:
    """The stream these jobs need, this process's share of it."""
    return SubjectStream(
        subject,
        corpus,
        hookpoints_of([job.config for job in jobs]),
        block_tokens=block_tokens(jobs, stream, world),
        batch_tokens=stream.harvest_tokens,
        mask_rate=stream.mask_rate,
        seed=stream.seed,
        special_tokens=stream.special_tokens,
        rank=world.rank,
        world_size=world.size,
    )


def train_dictionary(
    subject: Subject,
    corpus: Corpus,
    config: DictionaryConfig,
    training: TrainingConfig,
    checkpoint: Path,
    on_step: Callback = lambda record: None,
    stream: StreamConfig = StreamConfig(),  # noqa: B008  (frozen)
    *,
    measure: bool = True,
) -> Dictionary:
    """Train one dictionary on `corpus` (or go on training, if `checkpoint` exists), see `train`."""
    world, jobs = World(), [Job("dictionary", config, training)]
    source = subject_stream(subject, corpus, jobs, stream, world)
    given: dict[str, Any] = {"subject": subject, "corpus": corpus, "world": world, "measure": measure}
    return train(source, jobs, checkpoint, on_step, **given)[0]


def train(
    stream: ActivationStream,
    jobs: Sequence[Job],
    checkpoint: Path,
    on_step: Callback = lambda record: None,
    *,
    subject: Subject | None = None,
    corpus: Corpus | None = None,
    world: World | None = None,
    parallel: Parallel = "data",
    checkpoint_tokens: int = 500_000,
    measure: bool = True,
    warn: Callable[[str], None] = lambda text: None,
) -> list[Dictionary]:
    """Train every job from one stream (or go on, if `checkpoint` exists); dictionaries are float32 and folded.

    `subject` and `corpus` are needed for fine-tuning alone. A checkpoint is written every `checkpoint_tokens` tokens
    of the stream and at the end of a phase. Without `measure`, density and mean activation stay 0: for one of whom
    only the activations are asked. `warn` is told of hookpoints with massive activations.

    The processes of `world` share the work by tokens or by features, see `training.parallel`; step i is on the i-th
    batches of their streams, one after another. Where features are shared, process 0 alone returns dictionaries,
    the others an empty list. Raises RunError when the checkpoint is damaged or belongs to other
    settings, when a block is too small for a batch, when a checkpoint cannot be written, or when the loss is not
    finite; the last good checkpoint stays.
    """
    world = world or World()
    device = _device(subject)
    begun = read_checkpoint(checkpoint)
    jobs = world.same(as_begun(jobs, begun and begun["settings"], device))
    for job in jobs:
        if job.training.finetune_tokens and parallel == "features" and world.size > 1:
            raise RunError("feature parallel does not fine-tune: set finetune_tokens to 0, or use data parallel.")
        if job.training.finetune_tokens and (subject is None or corpus is None):
            raise RunError("fine-tuning needs the subject and sequences, not an activation store alone.")
        if job.training.finetune_tokens and subject is not None:
            require_whole_mlp(job.config, subject)
    source = {key: value for key, value in stream.describe().items() if key != "rank"}
    settings = {"world_size": world.size, "parallel": parallel, "stream": source}
    settings["jobs"] = [job.settings() for job in jobs]
    trainers = [trainer_of(job, stream.hookpoints, world, device, parallel) for job in jobs]
    checkpoints = Checkpoints(checkpoint, settings, world, parallel)
    found = checkpoints.load()
    state: dict[str, Any] = {"phase": "reconstruct", "positions": [0] * world.size, "finetuned": 0, "batch": 0}
    state = found or state
    blocks = stream.blocks(state["positions"][world.rank])
    if found is None:
        first = next(blocks)
        norms = Norms.of(first.activations.to(device), world)
        blocks = chain([first], blocks)
        del first  # one block is held at a time
    else:
        norms = Norms(*found["norms"]).to(device)
        for trainer, saved in zip(trainers, state["trainers"], strict=True):
            if state["phase"] != "reconstruct":
                trainer.optimizer = trainer.new_optimizer(trainer.job.training.finetune_learning_rate)
            trainer.restore(saved)
        torch.set_rng_state(state["rng"])

    for name, massive in zip(stream.hookpoints, norms.massive, strict=True):
        if massive:
            warn(f"{name} holds activations beyond 100 times its median: they may crowd out features.")

    def save() -> None:
        kept = {"norms": (norms.mean, norms.scale, norms.massive), "rng": torch.get_rng_state()}
        checkpoints.save(state | kept, [trainer.state() for trainer in trainers])

    if state["phase"] == "reconstruct":
        reconstruct(blocks, trainers, norms, state, save, on_step, checkpoint_tokens, world)
        for trainer in trainers:
            trainer.finish(norms)
            trainer.tokens = trainer.steps = 0
            trainer.optimizer = trainer.new_optimizer(trainer.job.training.finetune_learning_rate)
        state["phase"] = "finetune"
        save()
    for number, trainer in enumerate(trainers):
        if trainer.job.training.finetune_tokens and number >= state["finetuned"]:
            assert subject is not None
            assert corpus is not None
            finetune(subject, corpus, trainer, state, save, on_step)
            state |= {"finetuned": number + 1, "batch": 0}
            save()
    if measure:
        statistics(stream, state["positions"][world.rank], trainers)
    whole = [trainer.split.whole(trainer.dictionary) for trainer in trainers]
    return [dictionary.eval().requires_grad_(False) for dictionary in whole if dictionary is not None]


def _device(subject: Subject | None) -> torch.device:
    return subject.device if subject is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")


def reconstruct(
    blocks: Iterator[Block], trainers, norms, state, save, on_step, checkpoint_tokens: int, world: World
) -> None:
    saved_at, idle = 0, 0
    while not all(t.done for t in trainers):
        block = next(blocks)
        before = [trainer.tokens for trainer in trainers]
        for trainer in trainers:
            trainer.train_block(block.activations.to(trainer.since.device), norms, on_step)
        # a skipped shard may leave one block short, not one after another
        idle = idle + 1 if before == [trainer.tokens for trainer in trainers] else 0
        if idle == SHORT_BLOCKS:
            raise RunError("the blocks of the stream are smaller than batch_tokens: raise block_tokens.")
        state["positions"] = world.all(block.position)
        saved_at += sum(world.all(block.activations.shape[1]))
        if saved_at >= checkpoint_tokens:
            save()
            saved_at = 0


def finetune(subject: Subject, corpus: Corpus, trainer: Trainer, state, save, on_step) -> None:
    """Free-running KL and hidden-state error, the reconstruction loss kept as an anchor."""
    training, dictionary, world = trainer.job.training, trainer.dictionary, trainer.world
    size = max(1, training.finetune_batch_tokens // world.size)
    stream = masked_batches(
        subject,
        corpus,
        size,
        mask_rate_of(subject, None),
        training.seed + 1,
        state["batch"],
        rank=world.rank,
        world_size=world.size,
    )
    none_dead = torch.zeros_like(trainer.since, dtype=torch.bool)
    autocast = torch.autocast(subject.device.type, torch.bfloat16, enabled=training.dtype == "bfloat16")
    started, first, saved = time.perf_counter(), trainer.tokens, trainer.tokens
    for number, batch, chosen in stream:
        if trainer.tokens >= training.finetune_tokens:
            break
        rate = replace(training, warmup=0.02).rate(trainer.tokens / training.finetune_tokens)
        x, y, final = mlp_activations(subject, batch)
        with autocast:
            anchor = reconstruction(dictionary, x.flatten(1, 2), y.flatten(1, 2), training, none_dead)
            drift = free_running(subject, dictionary, batch, chosen, final)
        trainer.update(drift + 0.1 * anchor.total, training.finetune_learning_rate * rate)
        trainer.tokens += sum(world.all(batch.ids.numel()))
        trainer.steps, state["batch"] = trainer.steps + 1, number + 1
        speed = (trainer.tokens - first) / (time.perf_counter() - started)
        record = {"job": trainer.job.name, "phase": "finetune", "step": trainer.steps, "tokens": trainer.tokens}
        record |= {"loss": drift.item(), "fve": anchor.fve.tolist(), "l0": anchor.l0.item(), "tokens_per_s": speed}
        on_step(record | {"eta_s": (training.finetune_tokens - trainer.tokens) / speed})
        if trainer.tokens - saved >= 100_000:
            save()
            saved = trainer.tokens
    save()


@torch.no_grad()
def statistics(stream: ActivationStream, position: int, trainers: Sequence[Trainer]) -> None:
    """Fill `mean_activation` and `density` `[n_layers, F]` from fresh tokens of the stream: as many as the longest
    training had, at most STATISTICS_TOKENS."""
    wanted = min(STATISTICS_TOKENS, max(trainer.job.training.tokens for trainer in trainers))
    sums = [(torch.zeros_like(t.dictionary.mean_activation), torch.zeros_like(t.dictionary.density)) for t in trainers]
    count = 0
    for block in stream.blocks(position):
        for trainer, (total, active) in zip(trainers, sums, strict=True):
            dictionary, split = trainer.dictionary, trainer.split
            x = block.activations[trainer.reads].to(total.device)
            for layer in range(dictionary.config.n_layers):
                _count(split.chosen(dictionary.encode(layer, split.tokens(x[layer]))), total[layer], active[layer])
        count += sum(trainers[0].world.all(block.activations.shape[1]))
        if count >= wanted:
            break
    for trainer, (total, active) in zip(trainers, sums, strict=True):
        trainer.split.sum_(total, active)
        trainer.dictionary.mean_activation.copy_(total / count)
        trainer.dictionary.density.copy_(active / count)


def _count(found: SparseActivations, total: Tensor, active: Tensor) -> None:
    places = found.indices.flatten().long()
    total.index_add_(0, places, found.values.flatten())
    active.index_add_(0, places, (found.values.flatten() > 0).to(active.dtype))
