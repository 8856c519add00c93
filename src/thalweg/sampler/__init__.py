"""Samplers: Markov kernels and annealed schemes, pure steps over an energy."""
