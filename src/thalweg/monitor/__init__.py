"""Watching a training: figures of its samples, and those who judge them."""
