"""The pretraining loss: on the task's own sequences, and on a corpus that all compared share."""

from collections.abc import Sequence

from isotrace.transfer.curvature.loss import View
from isotrace.transfer.curvature.subject_losses import masked_loss
from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import predictor


@predictor("masked_loss", direction=-1, source="ours: how far the task lies from the corpus", passes=2,
           needs=("subject", "texts"))  # fmt: skip
def on_the_task(evidence: Evidence) -> float:
    """Cross-entropy (nats) of 15 % masked tokens of the task's sequences; per token, so of one tokeniser only."""
    return _loss(evidence, evidence.texts)


@predictor("corpus_loss", direction=-1, source="usual practice", passes=0, needs=("subject", "corpus"), of_task=False)
def on_the_corpus(evidence: Evidence) -> float:
    """The same of `Evidence.corpus`; its passes depend on no task and are not counted."""
    return _loss(evidence, evidence.corpus)


def _loss(evidence: Evidence, texts: Sequence[str]) -> float:
    assert evidence.subject is not None
    loss = masked_loss(evidence.subject, texts, evidence.seed)
    return View(loss).value(loss.at)
