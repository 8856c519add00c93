"""Closed-form energies that are fitted to rows: Gaussian, kernel density, mixtures of factor analysers."""
