"""Classification by a joint energy E(x, y), with calibrated probabilities."""
