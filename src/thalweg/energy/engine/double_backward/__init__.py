"""Gradients of gradients written out, for score matching."""
