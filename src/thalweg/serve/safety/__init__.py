"""Limits, tokens, hosts and headers."""
