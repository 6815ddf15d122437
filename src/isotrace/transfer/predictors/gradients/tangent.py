"""Alignment of the encoder's tangent kernel with that of the labels."""

import numpy as np

from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.gradients.gradient import fresh_heads, gradients
from isotrace.transfer.predictors.predictor import predictor
from isotrace.transfer.predictors.scores.kernel_alignment import alignment

INPUTS = 64


@predictor("tangent_alignment", sampled=(3, INPUTS), source="Jacot et al. 2018, arXiv 1806.07572",
           needs=("subject", "texts"))  # fmt: skip
def tangent_alignment(evidence: Evidence) -> float:
    """As `kernel_alignment`, of the gradients of the mean output of ten fresh heads, on at most 64 sequences.

    Of several classes the first output is taken: heads are drawn, no output is a class yet.
    """
    chosen = np.random.default_rng((evidence.seed, 14)).permutation(len(evidence.y))[:INPUTS]
    heads = fresh_heads(evidence)
    tangents = gradients(evidence, [chosen[[i]] for i in range(len(chosen))], lambda x, _: heads(x)[..., 0].mean())
    return alignment(tangents, evidence.targets[chosen])
