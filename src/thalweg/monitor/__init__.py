"""Eyes on a run: figures of a set of samples beside held-out data, and a test with a known rate of false alarms."""

from thalweg.monitor.diversity import Diversity, Report

__all__ = ["Diversity", "Report"]
