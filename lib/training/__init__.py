"""Training: optimizer, state, log, and the files of a run."""
