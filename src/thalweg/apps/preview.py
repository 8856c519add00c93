"""A first look at a run while it works: samples of the averaged energy as a picture."""

from pathlib import Path
from typing import Any

import torch

from thalweg.core.rng import generator
from thalweg.core.store import write_bytes
from thalweg.evaluate.pictures import grid, png, scatter
from thalweg.sampler.annealed import anneal
from thalweg.sampler.run import run_chain

NUM_IMAGES, NUM_POINTS, CHAIN_STEPS = 40, 1000, 60


def draw(energy: Any, sampler: Any, kind: str, transform: Any, path: Path, precision: str = "fp32") -> None:
    """Write samples of an energy to `path` as PNG: a grid of images, or a scatter plot of the first two columns."""
    n = NUM_IMAGES if kind == "image" else NUM_POINTS
    if getattr(energy, "noisy", False):
        z = torch.cat(list(anneal(sampler, energy, n, precision=precision)))
    else:
        draws, size = generator(0, "preview"), (n, *energy.shape)
        image = kind == "image"
        start = transform.forward(torch.rand(size, generator=draws)) if image else torch.randn(size, generator=draws)
        z = run_chain(sampler, energy, start, num_steps=CHAIN_STEPS, precision=precision)
    x = transform.inverse(z)
    x = torch.nan_to_num(x.clamp(0, 1) if kind == "image" else x)
    write_bytes(path, grid(x, columns=10) if kind == "image" else png(scatter(x, x[:0])))
