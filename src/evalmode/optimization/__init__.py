"""The fastest verified way to run a model: passes, candidates, verification, search."""
