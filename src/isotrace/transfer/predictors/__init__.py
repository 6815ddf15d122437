"""Cheap predictors of how a checkpoint will do on a task, before it is adapted to it. See docs/transfer.md."""

from isotrace.transfer.predictors.evidence import Evidence, alike
from isotrace.transfer.predictors.predictor import PREDICTORS, Predictor, Row, predictor, score_all
from isotrace.transfer.predictors.scored import scored

__all__ = ["PREDICTORS", "Evidence", "Predictor", "Row", "alike", "predictor", "score_all", "scored"]
