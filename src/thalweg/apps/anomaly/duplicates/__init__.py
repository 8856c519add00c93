"""Rows that occur more than once: copies, near-copies, and ties that chance explains."""
