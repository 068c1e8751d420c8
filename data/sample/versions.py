"""Versions of the sample data. Imports nothing, so that `python -m data.sample --help` is fast."""

VERSION = 2  # drawn by default, of what has several; each version gives the same scenes and sentences for ever
VERSIONS = (1, 2)
