"""Evaluating a model on data: batches in, one record of figures with intervals out."""
