"""Texts explained by their energy: which letters are unlikely, and which text was meant."""
