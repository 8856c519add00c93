"""A first look at a run while it works: samples of the averaged energy as a picture, and the hook that draws it."""

import logging
from pathlib import Path
from typing import Any

import torch

from thalweg.core import config as specs
from thalweg.core.rng import generator
from thalweg.core.store import write_bytes
from thalweg.energy.base import NoiseConditional
from thalweg.energy.engine.freeze import frozen
from thalweg.sampler.annealed import anneal
from thalweg.sampler.chain import run_chain

PREVIEW_SECONDS = 20.0
NUM_IMAGES, NUM_POINTS, CHAIN_STEPS = 40, 1000, 60
log = logging.getLogger("thalweg")


def draw(energy: Any, sampler: Any, kind: str, transform: Any, path: Path, precision: str = "fp32") -> None:
    """Write samples of an energy to `path` as PNG: a grid of images, or a scatter plot of the first two columns."""
    from thalweg.evaluate.pictures import grid, png, scatter  # brings matplotlib along

    n = NUM_IMAGES if kind == "image" else NUM_POINTS
    if isinstance(energy, NoiseConditional):
        z = torch.cat(list(anneal(sampler, energy, n, precision=precision)))
    else:
        draws, size = generator(0, "preview"), (n, *energy.shape)
        image = kind == "image"
        start = transform.forward(torch.rand(size, generator=draws)) if image else torch.randn(size, generator=draws)
        z = run_chain(sampler, energy, start, num_steps=CHAIN_STEPS, precision=precision)
    x = transform.inverse(z)
    x = torch.nan_to_num(x.clamp(0, 1) if kind == "image" else x)
    write_bytes(path, grid(x, columns=10) if kind == "image" else png(scatter(x, x[:0])))


class Previews:
    """A hook of the trainer that draws `preview.png`: after 20 s, then each time its time has grown by half."""

    def __init__(self, run: Any, kind: str, transform: Any, folder: Path, group: Any):
        self.sampler = specs.build(run.sampler)
        self.kind, self.transform, self.folder = kind, transform, folder
        self.next_seconds, self.group = PREVIEW_SECONDS, group

    def __call__(self, state: Any, plan: Any) -> None:
        """Draw if it is time. Randomness is addressed and weights are only read, so training is not touched."""
        last = state.step == plan.num_steps
        if state.seconds < self.next_seconds and not last:
            return
        self.next_seconds = max(self.next_seconds * 1.5, state.seconds)
        self.group.on_rank0(lambda: self._draw(state, plan))

    def _draw(self, state: Any, plan: Any) -> None:
        try:
            with frozen(state.average) as energy:
                draw(energy, self.sampler, self.kind, self.transform, self.folder / "preview.png", plan.precision)
        except (ValueError, TypeError, RuntimeError, OSError) as error:  # a picture must not end a run
            log.warning("no preview: %s", error)
