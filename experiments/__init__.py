"""The paper's comparisons on the sample data: `python -m experiments.compare`, `python -m experiments.report`."""
