"""Predictors that fit something to the labels and see how it does on groups held out."""
