"""Graphs of energies and detectors for other runtimes, checked against ours when they are written."""
