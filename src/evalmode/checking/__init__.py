"""Test the evaluation contract on a model, clause by clause."""
