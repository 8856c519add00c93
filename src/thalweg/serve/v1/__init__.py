"""The plain routes."""
