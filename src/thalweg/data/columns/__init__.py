"""Columns of a table: what they hold, how they become numbers, and back."""
