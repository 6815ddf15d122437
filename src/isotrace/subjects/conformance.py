"""Does a family's entry describe the model? The checks a new entry must pass, on any subject and input.

A module path that does not exist is noticed by itself. One that is missing, or that names another module, shows here:
a norm or an attention left out makes the frozen subject depend on its sources in more than a linear way.
"""

from typing import Any, cast

import torch
from torch import Tensor

from isotrace.base.errors import SubjectError
from isotrace.subjects.frozen import FrozenSubject, Sources
from isotrace.subjects.subject import Subject

TOLERANCE = 1e-3  # relative, in float32; a norm left unfrozen is off by a tenth or more


@torch.no_grad()
def check(subject: Subject, sequences: list[str]) -> dict[str, float]:
    """Relative deviation of every check; the first sequence is the one to be frozen.

    padding      hidden states of each sequence alone against those in one padded batch
    replay       the frozen subject on its own sources against the subject
    linearity    f(a + b) − f(b) against f(a) − f(0), f the frozen subject and a, b random sources
    head         the frozen head against the subject's logits, where it has a head
    task head    the frozen head of a fine-tuned subject against what its own class gives

    Raises SubjectError naming the first that deviates by more than TOLERANCE, or an MLP that reaches nothing.
    """
    found, batch = {}, subject.tokenize(sequences)
    together = subject.run(batch, logits=False).final
    alone = [subject.run(subject.tokenize([text]), logits=False).final[0] for text in sequences]
    found["padding"] = max(_relative(t[: len(a)], a) for t, a in zip(together, alone, strict=True))
    first = subject.tokenize(sequences[:1])
    frozen = FrozenSubject(subject, first)
    found["replay"] = _relative(frozen.replay(frozen.sources).final[0], alone[0])
    generator = torch.Generator().manual_seed(0)
    a, b = (frozen.sources.map(lambda t: t.std() * torch.randn(t.shape, generator=generator).to(t)) for _ in range(2))
    tensors = [x + y for x, y in zip(a.tensors(), b.tensors(), strict=True)]
    both, zero = (
        Sources(tuple(tensors[: len(a.embeddings)]), tuple(tensors[len(a.embeddings) :])),
        a.map(torch.zeros_like),
    )
    of_both, of_a, of_b, of_zero = (frozen.replay(sources).final for sources in (both, a, b, zero))
    found["linearity"] = _relative(of_both - of_b, of_a - of_zero)
    if subject.has_head:
        final = frozen.actual.final[:, 1]
        found["head"] = _relative(frozen.head_map(1)(final), subject.head(final))
    if (task := subject.task) is not None:
        own = cast(Any, subject.model)(input_ids=first.ids, attention_mask=first.mask.long()).logits
        pooled = task.pooled(first, frozen.actual.final, 1)[0]
        found["task head"] = _relative(frozen.task_map(pooled)(pooled), own[0, 1] if task.kind == "token" else own[0])
    for name, deviation in found.items():
        if not deviation < TOLERANCE:
            raise SubjectError(f"{subject.source}: {name} deviates by {deviation:.1g}: the family's entry is wrong.")
    for layer in range(subject.n_layers):
        changed = tuple(torch.zeros_like(m) if i == layer else m for i, m in enumerate(frozen.sources.mlp_out))
        if torch.equal(frozen.replay(Sources(frozen.sources.embeddings, changed)).final, frozen.actual.final):
            raise SubjectError(
                f"{subject.source}: the MLP of layer {layer} reaches nothing: the family's entry is wrong."
            )
    return found


def _relative(found: Tensor, expected: Tensor) -> float:
    """Largest deviation, relative to the largest expected magnitude."""
    return float((found - expected).abs().max() / expected.abs().max())
