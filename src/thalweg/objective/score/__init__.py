"""Score matching: explicit, sliced, denoising and dual, and the noise levels that are drawn."""
