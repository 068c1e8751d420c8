"""The comparisons of the paper on the sample data: `python -m experiments.compare`, `python -m experiments.report`."""
