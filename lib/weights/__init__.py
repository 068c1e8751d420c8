"""Weights in files. Imports nothing: `python -m lib.weights --help` is answered at once."""
