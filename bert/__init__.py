"""The language half of the network: stages of BERT layers, and the tokenizer."""
