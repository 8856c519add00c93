"""Anomaly detection: high energy is strange, and how strange is said in shares of normal data."""
