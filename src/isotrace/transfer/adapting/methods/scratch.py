"""scratch: as full, from random weights. What a subject gains over it, its pretraining has given."""

import torch

from isotrace.subjects.subject import Subject
from isotrace.transfer.adapting.method import METHODS, Adapted, Job, copied
from isotrace.transfer.adapting.methods.full import trained_whole


@METHODS.named("scratch")
def scratch(job: Job) -> Adapted:
    """The weights are drawn as transformers initialises the architecture, by the seed."""
    copy = copied(job.subject)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.settings.seed)
        model = type(copy.model)(copy.model.config)
    model.to(copy.device)  # pyright: ignore[reportArgumentType]
    return trained_whole(job, Subject(model, copy.tokenizer, copy.files, copy.has_head))
