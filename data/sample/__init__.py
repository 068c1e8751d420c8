"""The sample data set. Imports nothing, so that `python -m data.sample --help` is fast."""
