"""The network's language half: stages built from BERT's own layers."""
