"""The energy behind the anomaly detector of tables."""
