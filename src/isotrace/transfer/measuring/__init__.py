"""Outcomes of checkpoints on tasks, and what predictors said of them before."""
