"""Training: the one loop, its state, its checkpoints."""
