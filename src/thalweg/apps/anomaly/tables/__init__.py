"""Anomaly detection from file to file: fits on a table, scores a table block by block."""
