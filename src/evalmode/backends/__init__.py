"""What runs a model: one file per back end, each from a program to an executor."""
