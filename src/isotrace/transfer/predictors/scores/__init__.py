"""Predictors in closed form, of embeddings and labels alone."""
