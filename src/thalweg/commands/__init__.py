"""A command of the command line in each file; `thalweg.cli` puts them together."""
