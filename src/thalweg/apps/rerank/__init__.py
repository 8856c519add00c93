"""Re-ranking of a generator's candidates by a learned likelihood ratio."""
