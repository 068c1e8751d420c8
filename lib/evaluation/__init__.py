"""Metrics, published scores, tables, masks in files and the page of a test."""
