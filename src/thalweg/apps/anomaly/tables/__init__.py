"""Anomaly detection from file to file: fits a detector to a table, scores a table block by block."""
