"""Scoring many files in blocks, in this process or by workers of Ray: each row once, whatever is killed."""
