"""Clients of vision-language models, one file each; `base.py` says what a client is."""
