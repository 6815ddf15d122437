"""Into how many tokens a tokeniser cuts the task's sequences."""

from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import predictor


@predictor("fertility", direction=-1, source="Rust et al. 2021, arXiv 2012.15613", passes=0, needs=("subject", "texts"))
def fertility(evidence: Evidence) -> float:
    """Tokens that are no special ones per character, of all sequences together."""
    subject = evidence.subject
    assert subject is not None
    batch = subject.tokenize(evidence.texts)
    real = batch.mask & ~subject.special(batch.ids)
    return float(real.sum()) / sum(len(text.strip()) for text in evidence.texts)
