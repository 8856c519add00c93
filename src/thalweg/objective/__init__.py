"""Objectives: losses that train an energy."""
