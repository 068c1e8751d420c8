"""A training: its optimizer, its state, its log, and the files of its run."""
