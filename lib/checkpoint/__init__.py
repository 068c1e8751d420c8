"""Weights and training states in files. Imports nothing: `python -m lib.checkpoint --help` is answered at once."""
