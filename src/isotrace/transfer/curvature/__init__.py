"""Curvature and landscape of a loss in the space of a subject's weights. See docs/transfer.md."""

from isotrace.transfer.curvature.loss import Block, Loss, View, loss_of
from isotrace.transfer.curvature.measure import MEASURES, Estimate, Measure, Row, measure, measure_all

__all__ = ["MEASURES", "Block", "Estimate", "Loss", "Measure", "Row", "View", "loss_of", "measure", "measure_all"]
