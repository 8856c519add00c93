"""Kinds of files, one module each: `thalweg train FILE`."""
