"""The early look at the samples of a run: `preview.png`, drawn from the averaged energy while it trains.

Of texts it is `preview.txt`, a sample a line.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thalweg.bundle.model_units import decoded, initial_positions
from thalweg.core.rng import generator
from thalweg.core.store import write_bytes
from thalweg.data.catalog import Dataset
from thalweg.data.float32_check import Float32Transform
from thalweg.energy.base import NoiseConditional
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.energy.engine.discovery import device_of
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.outcomes import Conditional
from thalweg.objective.base import Objective, start_law_of
from thalweg.sampler.annealed import anneal
from thalweg.sampler.base import Sampler, require_annealed
from thalweg.sampler.chain import run_chain
from thalweg.training.distributed import ProcessGroup, SingleProcess
from thalweg.training.plan import Plan
from thalweg.training.state import TrainState

PREVIEW_SECONDS = 20.0
NUM_IMAGES, NUM_POINTS, CHAIN_STEPS = 40, 1000, 60
NUM_TEXTS, TEXT_STEPS = 20, 300  # a step changes one letter at most
log = logging.getLogger("thalweg")


def draw(
    energy: nn.Module,
    sampler: Sampler[Any],
    data: Dataset,
    transform: Float32Transform,
    path: Path,
    precision: str = "fp32",
    law: MixtureOfFactorAnalyzers | None = None,
) -> None:
    """Write samples of an energy to `path`: a grid of images or a scatter plot of two columns, or lines of text.

    `law`: where chains start, in place of noise.
    """
    kind = data.kind
    n = {"image": NUM_IMAGES, "vector": NUM_POINTS, "text": NUM_TEXTS}[kind]
    if isinstance(energy, NoiseConditional):
        z = torch.cat(list(anneal(require_annealed(sampler), energy, n, precision=precision)))
    else:
        steps = TEXT_STEPS if kind == "text" else CHAIN_STEPS
        start = initial_positions(kind, transform, (n, *data.shape), generator(0, "preview"), energy, law)
        z = run_chain(sampler, energy, start.to(device_of(energy)), num_steps=steps, precision=precision)
    x = torch.nan_to_num(decoded(kind, transform, z.cpu()))
    if data.alphabet is not None:
        write_bytes(path, "".join(f"{text}\n" for text in data.alphabet.decode(x)).encode())
        return
    from thalweg.evaluate.pictures import grid, png, scatter  # brings matplotlib along

    write_bytes(path, grid(x, columns=10) if kind == "image" else png(scatter(x, x[:0])))


class Previews:
    """A hook of the trainer that draws the preview: after 20 s, then each time its time has grown by half."""

    def __init__(
        self,
        sampler: Sampler[Any],
        data: Dataset,
        transform: Float32Transform,
        folder: Path,
        group: SingleProcess | ProcessGroup,
        objective: Objective[Any] | None = None,
    ):
        self.objective = objective
        self.sampler, self.data, self.transform, self.folder = sampler, data, transform, folder
        self.next_seconds, self.group = PREVIEW_SECONDS, group

    def __call__(self, state: TrainState, plan: Plan) -> None:
        """Draw if it is time. Randomness is addressed and weights are only read, so training is not touched."""
        if isinstance(state.average, Conditional):
            return  # there is no law of whole rows to draw from
        last = state.step == plan.num_steps
        if state.seconds < self.next_seconds and not last:
            return
        self.next_seconds = max(self.next_seconds * 1.5, state.seconds)
        self.group.on_rank0(lambda: self._draw(state, plan))

    def _draw(self, state: TrainState, plan: Plan) -> None:
        try:
            with frozen(state.average) as energy:
                path = self.folder / ("preview.txt" if self.data.kind == "text" else "preview.png")
                law = start_law_of(self.objective, state.objective, self.data.energy_shape)
                draw(energy, self.sampler, self.data, self.transform, path, plan.precision, law)
        except (ValueError, TypeError, RuntimeError, OSError) as error:  # a picture must not end a run
            log.warning("no preview: %s", error)
