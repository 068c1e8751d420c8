"""The sample data set. Imports nothing: `python -m data.sample --help` is answered at once."""
