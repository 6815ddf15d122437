"""lora: the linear maps of attention and MLP of every layer get a product of two thin matrices beside them, ΔW =
(α/r) B A with B = 0 at the start (Hu et al. 2021, arXiv:2106.09685); afterwards it is added to the weights.

Embeddings stay as they are, tied ones among them. Weights that layers share (ALBERT) share their adapter. The frozen
parts run without dropout.
"""

from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import nn

from isotrace.base.errors import SubjectError
from isotrace.subjects.subject import Subject
from isotrace.transfer.adapting.head import Readout
from isotrace.transfer.adapting.method import METHODS, Adapted, Job, copied, n_weights, prepared
from isotrace.transfer.adapting.methods.full import best_of, head_of
from isotrace.transfer.adapting.settings import LARGE, LORA_RATES
from isotrace.transfer.adapting.training import Trainee, train


@METHODS.named("lora")
def lora(job: Job) -> Adapted:
    """Raises SubjectError where peft is not installed."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise SubjectError("the method lora needs peft: pip install 'isotrace[peft]', or take --method full.") from None
    copy, settings = copied(job.subject), job.settings
    head = head_of(job, copy)
    how: dict[str, Any] = {"r": settings.rank, "lora_alpha": settings.alpha, "lora_dropout": settings.lora_dropout}
    config = LoraConfig(**how, target_modules=targets(copy), fan_in_fan_out=_transposed(copy))
    with torch.random.fork_rng(devices=[]), catch_warnings():
        simplefilter("ignore")  # at what peft calls in transformers
        torch.manual_seed(settings.seed)
        wrapped: Any = get_peft_model(copy.model, config)  # pyright: ignore[reportArgumentType]
    wrapped.eval()
    trained = {n: (p, 1.0) for n, p in wrapped.named_parameters() if p.requires_grad}
    noisy = [m for n, m in wrapped.named_modules() if n.endswith("lora_dropout")]
    rate = settings.learning_rate or LORA_RATES[n_weights(job.subject.model) > LARGE]
    points = train(
        Trainee(copy, trained, noisy), head, job.table, job.spelled, settings, rate, name=job.name, work=job.work,
        progress=job.progress,
    )  # fmt: skip
    with catch_warnings():
        simplefilter("ignore")
        merged = wrapped.merge_and_unload()
    n_trained = sum(p.numel() for p, _ in trained.values()) + n_weights(head)
    subject = prepared(Subject(merged, copy.tokenizer, copy.files, copy.has_head))
    return Adapted(
        subject, Readout((job.subject.n_layers,), job.pool, *head.weights()), points, n_trained, best_of(points), False
    )


def targets(subject: Subject) -> list[str]:
    """Names of the linear maps inside the blocks. Raises SubjectError where there are none."""
    inside = {id(m) for stack, i in subject.family.blocks(*subject.stack_sizes)
              for m in subject.module(stack.path(i, "")).modules()}  # fmt: skip
    found = [n for n, m in subject.model.named_modules() if id(m) in inside and _linear(m)]
    if not found:
        raise SubjectError(f"{subject.source} has no linear maps in its layers: take --method full.")
    return found


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _transposed(subject: Subject) -> bool:
    """Whether its linear maps hold their weights as `[in, out]`, as GPT-2's do."""
    return any(type(m).__name__ == "Conv1D" for m in subject.model.modules())
