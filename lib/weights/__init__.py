"""Weights in files. Imports nothing, so that `python -m lib.weights --help` is fast."""
