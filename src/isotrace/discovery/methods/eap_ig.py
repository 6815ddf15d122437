"""Attribution patching with integrated gradients: (z − z′) times the gradient averaged over n points between the
reference and the clean input, the midpoints of n equal steps.

With a corrupt input (Hanna et al. 2024, "Have faith in faithfulness"): the outputs of the embeddings are interpolated
between the two inputs, and all else follows from them. One path serves all nodes.

Without, there is no input at the other end: the activations of one layer, all its nodes together, are interpolated
from reference to clean, and the layers take turns (Marks et al. 2024, "Sparse feature circuits"). In the limit of
many steps the scores of a layer sum to M(clean) − M(the whole layer at its reference). Were all layers set at once,
no node could act through a later one, and only direct effects would be left.
"""

import torch
from torch import Tensor, nn

from isotrace.discovery.gradients import first_order, gradients
from isotrace.discovery.method import Problem, Scores, method
from isotrace.interventions.components import Values
from isotrace.subjects.dispatch import forwards_replaced, watched
from isotrace.subjects.subject import Batch, Subject

N_STEPS = 5


def refuse(problem: Problem) -> str | None:
    subject, corrupt = problem.subject, problem.corrupt
    if corrupt is None or not getattr(subject.model.config, "token_dropout", False):
        return None
    masked = [batch.ids == subject.mask_id for batch in (problem.batch, corrupt)]
    if torch.equal(*masked):
        return None
    return "it scales embeddings by the number of masked tokens: mask clean and corrupt input at the same places"


@method("eap_ig", refuse=refuse)
def eap_ig(problem: Problem, *, n_steps: int = N_STEPS) -> Scores:
    """Raises ValueError for fewer than one step."""
    if n_steps < 1:
        raise ValueError("gradients are averaged over at least one step")
    with torch.no_grad():
        clean = problem.components.record(problem.subject, problem.batch)[0]
    shares = [(step + 0.5) / n_steps for step in range(n_steps)]
    if problem.corrupt is not None:
        slopes, cost = _between_inputs(problem, problem.corrupt, shares), 3.0 + 3.0 * n_steps
    else:
        slopes, cost = _between_activations(problem, clean, shares), 1.0 + 3.0 * n_steps * len(clean)
    return Scores(first_order(clean, problem.reference, slopes), cost)


def _between_inputs(problem: Problem, corrupt: Batch, shares: list[float]) -> Values:
    ends = [_embedded(problem.subject, batch) for batch in (corrupt, problem.batch)]
    total: list[Tensor] = []
    for share in shares:
        mixed = [torch.lerp(start, end, share) for start, end in zip(*ends, strict=True)]
        with _embedding(problem.subject, mixed):
            found = gradients(problem)[1]
        total = [t + g for t, g in zip(total, found, strict=True)] if total else [*found]
    return tuple(t / len(shares) for t in total)


def _between_activations(problem: Problem, clean: Values, shares: list[float]) -> Values:
    slopes = []
    for layer, (end, start) in enumerate(zip(clean, problem.reference, strict=True)):
        total = torch.zeros_like(end)
        for share in shares:
            mixed = torch.lerp(start.expand_as(end), end, share)
            move = lambda at, values, mixed=mixed, layer=layer: mixed if at == layer else values  # noqa: E731
            total += gradients(problem, move)[1][layer]
        slopes.append(total / len(shares))
    return tuple(slopes)


@torch.no_grad()
def _embedded(subject: Subject, batch: Batch) -> list[Tensor]:
    """Outputs of `Subject.embeddings`."""
    found: dict[nn.Module, Tensor] = {}
    modules = [embedding.module for embedding in subject.embeddings]
    with watched(modules, lambda module, args, output: found.__setitem__(module, output)):
        subject.hidden(batch.ids, batch.mask)
    return [found[module] for module in modules]


def _embedding(subject: Subject, outputs: list[Tensor]):
    modules = (embedding.module for embedding in subject.embeddings)
    return forwards_replaced(
        {m: lambda *_, output=output, **__: output for m, output in zip(modules, outputs, strict=True)}
    )
