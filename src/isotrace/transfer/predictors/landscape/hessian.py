"""Curvature of the loss of masked tokens, on some of the task's sequences and on some of a corpus that all compared
share: controls, since it is often claimed that flat minima transfer and nobody has shown that any of these tells which
checkpoint does."""

from collections.abc import Sequence
from typing import Any

from isotrace.base.errors import InputError
from isotrace.base.progress import silent
from isotrace.transfer.curvature import measure_all
from isotrace.transfer.curvature.subject_losses import masked_loss
from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import predictor

SEQUENCES, DRAWS, BASIS, STEPS = 64, 8, 12, 5
"""Of the task or corpus; random products of a trace; vectors of the Lanczos basis; ascents of the sharpness."""
PASSES = {"trace": 4 * DRAWS, "eigenvalues": 4 * 3 * BASIS, "sharpness": 2 * 3 * (STEPS + 1)}
"""Of a sequence, about: a product with the Hessian counts as four, a gradient as three; bases are started again."""


def _control(name: str, measure: str, quantity: str, about: str, **settings: int) -> None:
    """Registers `name` and `corpus_name`, whose passes depend on no task and are not counted."""
    source = "see transfer.curvature"

    def value(evidence: Evidence, texts: Sequence[str]) -> float:
        assert evidence.subject is not None
        loss = masked_loss(evidence.subject, texts[:SEQUENCES], evidence.seed)
        rows = measure_all(loss, [measure], evidence.seed, silent, settings={measure: dict(settings)})
        found = next(row for row in rows if row.quantity == quantity)
        if found.reason and found.value != found.value:
            raise InputError(found.reason)
        return found.value

    given: dict[str, Any] = {"direction": -1, "source": source, "passes": 0}
    sampled = (PASSES[measure], SEQUENCES)
    of_task = predictor(name, needs=("subject", "texts"), about=about, sampled=sampled, **given)
    of_corpus = predictor(
        f"corpus_{name}", needs=("subject", "corpus"), about=f"{about}, on the corpus", of_task=False, **given
    )
    of_task(lambda evidence: value(evidence, evidence.texts))
    of_corpus(lambda evidence: value(evidence, evidence.corpus))


_control(
    "hessian_trace", "trace", "trace_per_parameter", "trace of the Hessian of masked tokens, per weight", draws=DRAWS
)
_control("hessian_largest", "eigenvalues", "lambda_1", "its largest eigenvalue", largest=1, smallest=0, basis=BASIS)
_control("sharpness", "sharpness", "sharpness", "rise of that loss in a small ball", steps=STEPS)
