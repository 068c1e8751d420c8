"""Metrics, published scores, tables, mask files and the HTML report."""
