"""Measuring answers: pure functions from model outputs and targets to figures with intervals."""
