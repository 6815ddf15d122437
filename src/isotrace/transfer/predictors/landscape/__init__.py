"""Curvature of the pretraining loss on the task, as controls."""
