"""Evaluation: what a trained energy and its samples are worth, beside trivial baselines."""
