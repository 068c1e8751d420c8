"""Versions of the sample data. Imports nothing, so that `python -m data.sample --help` is fast."""

VERSION = 1  # drawn by default; each version gives the same scenes and sentences for ever
VERSIONS = (1, 2)
