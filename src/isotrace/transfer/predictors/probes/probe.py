"""Cross-validated score of a linear probe of the final hidden state."""

from isotrace.probing.crossed import crossed
from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import predictor


@predictor("probe", source="usual practice; what any other predictor must beat")
def probe(evidence: Evidence) -> float:
    """Ridge or logistic regression, five folds of whole groups, the penalty chosen on one more fold.

    R², AUROC, or its mean over classes, of all predictions held out together.
    """
    given = evidence.y, evidence.kind, evidence.folds, evidence.classes
    return evidence.worth(crossed(evidence.embeddings, *given).outputs)
