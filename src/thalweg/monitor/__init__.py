"""Watching a run: figures of its samples, the test of a worsening, and what was found."""
