"""full: every weight that the hidden states depend on is trained.

The rate is 3e-4 below 5 million weights, else 3e-5, the value that benchmarks of chemical language models of BERT's
size use.
"""

from isotrace.probing.states import pooled_states
from isotrace.subjects.subject import Subject
from isotrace.transfer.adapting.head import Head, Readout, scale_of
from isotrace.transfer.adapting.method import METHODS, Adapted, Job, copied, n_weights, prepared
from isotrace.transfer.adapting.settings import FULL_RATES, SMALL
from isotrace.transfer.adapting.training import Trainee, train


@METHODS.named("full")
def full(job: Job) -> Adapted:
    return trained_whole(job, copied(job.subject))


def trained_whole(job: Job, copy: Subject) -> Adapted:
    """All of `copy`, but for the head of its language model where that shares nothing with the rest."""
    table, settings = job.table, job.settings
    base = copy.model.base_model
    n_body = n_weights(base)
    rate = settings.learning_rate or FULL_RATES[n_body >= SMALL]
    head = head_of(job, copy)
    base.requires_grad_(True)
    trained = {n: (p, _factor(copy, p, settings.layer_decay)) for n, p in base.named_parameters()}
    trainee = Trainee(copy, trained, [base])
    points = train(
        trainee, head, table, job.spelled, settings, rate, name=job.name, work=job.work, progress=job.progress
    )
    copy.model.requires_grad_(False)
    readout = Readout((job.subject.n_layers,), job.pool, *head.weights())
    return Adapted(prepared(copy), readout, points, n_body + n_weights(head), best_of(points), False)


def head_of(job: Job, copy: Subject) -> Head:
    """Standardised by what `copy` gives before it is trained."""
    members, rows = job.table.members("train"), job.table.rows("train")
    states = pooled_states(copy, [job.table.examples[i] for i in members], (), job.pool)
    return Head(scale_of(states, job.table, rows), job.pool).to(copy.device)


def best_of(points) -> str:
    best = min(points, key=lambda point: point.valid)
    return f"step {best.step} of {points[-1].step}, validation loss {best.valid:.3g}"


def _factor(copy: Subject, parameter, decay: float) -> float:
    """decay^(layers above it): those of a block, below the first of which stand the embeddings."""
    if decay == 1:
        return 1.0
    blocks = [*copy.family.blocks(*copy.stack_sizes)]
    for number, (stack, index) in enumerate(blocks):
        block = copy.module(stack.path(index, ""))
        if any(own is parameter for own in block.parameters()):
            return decay ** (len(blocks) - number)
    names = {id(p) for embedding in copy.embeddings for p in embedding.module.parameters()}
    return decay ** (len(blocks) + 1) if id(parameter) in names else 1.0
