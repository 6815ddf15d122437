"""How large a checkpoint is, and how much it has seen."""

import math

from isotrace.base.errors import InputError
from isotrace.transfer.adapting.method import n_weights
from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import predictor


@predictor("ln_params", source="usual practice", passes=0, needs=("subject",))
def ln_params(evidence: Evidence) -> float:
    """ln of the number of weights, tied ones once."""
    assert evidence.subject is not None
    return math.log(n_weights(evidence.subject.model))


@predictor("ln_tokens", source="usual practice", passes=0)
def ln_tokens(evidence: Evidence) -> float:
    """ln of the tokens seen in pretraining."""
    if not evidence.tokens_seen > 0:
        raise InputError("the number of tokens seen in pretraining is not known, or 0")
    return math.log(evidence.tokens_seen)
