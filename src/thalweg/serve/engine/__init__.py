"""Batching: many clients' requests, one worker."""
