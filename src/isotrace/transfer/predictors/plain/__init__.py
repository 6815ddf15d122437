"""Predictors that look at no label."""
