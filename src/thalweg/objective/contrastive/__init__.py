"""Contrastive divergence, its replay buffer and its health signals."""
