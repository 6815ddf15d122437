"""Signal-to-noise of the task's gradient at the pretrained weights."""

from isotrace.base.errors import InputError
from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.gradients.gradient import task_gradient
from isotrace.transfer.predictors.predictor import predictor


@predictor("gradient_snr", passes=4, source="ours, on principal gradients, see gradient.py", needs=("subject", "texts"))
def gradient_snr(evidence: Evidence) -> float:
    """‖mean‖ / noise of the gradients of batches of 32, through ten fresh heads.

    Of pure noise it is 1/√batches, so that only tasks of one size compare.
    """
    found = task_gradient(evidence)
    if not found.noise > 0:
        raise InputError("the gradients of all batches are alike: there is no noise to compare with")
    return found.size / found.noise
