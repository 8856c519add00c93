"""Energies: E(x) as modules and callables, low = likely, and the wrappers that compose them."""
