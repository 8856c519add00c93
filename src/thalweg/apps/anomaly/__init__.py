"""Applications: what the energy is for."""
