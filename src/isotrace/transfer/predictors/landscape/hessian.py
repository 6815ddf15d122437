"""Curvature of the loss of masked tokens on some of the task's sequences: controls, since it is often claimed that flat
minima transfer and nobody has shown that any of these tells which checkpoint does."""

from isotrace.base.errors import InputError
from isotrace.base.progress import silent
from isotrace.transfer.curvature import measure_all
from isotrace.transfer.curvature.subject_losses import masked_loss
from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import Run, predictor

SEQUENCES, DRAWS, BASIS, STEPS = 64, 8, 12, 5
"""Of the task; random products of a trace; vectors of the Lanczos basis; ascents of the sharpness."""
PASSES = {"trace": 4 * DRAWS, "eigenvalues": 4 * 3 * BASIS, "sharpness": 2 * 3 * (STEPS + 1)}
"""Of a sequence, about: a product with the Hessian counts as four, a gradient as three; bases are started again."""


def _control(name: str, measure: str, quantity: str, about: str, **settings: int) -> Run:
    @predictor(name, direction=-1, source="see transfer.curvature", passes=0, needs=("subject", "texts"), about=about,
               sampled=(PASSES[measure], SEQUENCES))  # fmt: skip
    def run(evidence: Evidence) -> float:
        assert evidence.subject is not None
        loss = masked_loss(evidence.subject, evidence.texts[:SEQUENCES], evidence.seed)
        rows = measure_all(loss, [measure], evidence.seed, silent, settings={measure: dict(settings)})
        found = next(row for row in rows if row.quantity == quantity)
        if found.reason and found.value != found.value:
            raise InputError(found.reason)
        return found.value

    return run


trace = _control(
    "hessian_trace", "trace", "trace_per_parameter", "trace of the Hessian of masked tokens, per weight", draws=DRAWS
)
largest = _control(
    "hessian_largest", "eigenvalues", "lambda_1", "its largest eigenvalue", largest=1, smallest=0, basis=BASIS
)
sharpness = _control("sharpness", "sharpness", "sharpness", "rise of that loss in a small ball", steps=STEPS)
