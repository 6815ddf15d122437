"""Predictors from gradients of the task at the pretrained weights; no step is taken."""
