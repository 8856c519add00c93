"""A network, an objective and a recipe for Thalweg."""
