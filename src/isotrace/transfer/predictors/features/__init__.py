"""Predictors that ask how few features of a dictionary a task needs, each beside neurons, components and an untrained
copy's dictionary at the same number active."""

from isotrace.transfer.predictors.features.bases import BASES, bases_of, with_features

__all__ = ["BASES", "bases_of", "with_features"]
