"""Draws at a temperature, and draws on their way: what a person watches while chains run.

At temperature T an energy E(x) has the law exp(-E / (T T0)), T0 the temperature of the bundle's own chains, mostly 1.
A kernel with a temperature gets another one; any other kernel runs on E / T. Both keep that law exactly where the
kernel does.

An energy with noise levels U(y, t) is drawn level by level. At T = 1 this is what `Bundle.sample` does. At another T
each level is entered by a Heun step of the flow, and followed by MALA steps that leave exp(-U(y, t) / T) as it is
(annealed Langevin dynamics with a predictor; Song et al. 2021). With more such steps the law at the lowest level tends
to exp(-U(y, t_min) / T); with the few that are taken it lies between that one and the law at T = 1.
"""

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from thalweg.bundle import classes
from thalweg.bundle.chain_length import chain_steps, start_law
from thalweg.bundle.model_units import initial_positions
from thalweg.core import check
from thalweg.core.rng import generator
from thalweg.energy.base import AnyEnergy, EnergyFn, HasExactDraws, NoiseConditional
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.wrappers import AtNoise, Tempered
from thalweg.sampler.annealed import BLOCK, Heun, denoise
from thalweg.sampler.base import HasChainTemperature, Sampler, require_annealed
from thalweg.sampler.chain import of_block, run_chain
from thalweg.sampler.langevin import MALA

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle

CORRECTIONS = 4  # MALA steps a level at a temperature beside 1
LEVELS = 30  # of Heun there
SEEDS = 2**64 - 1


def draw(bundle: "Bundle", n: int, *, seed: int = 0, temperature: float = 1.0, label: int | None = None) -> Tensor:
    """n draws (n, *) in data units; at T = 1 those of `Bundle.sample`. UserError as that one."""
    check.positive(temperature=temperature)
    check.finite(temperature=temperature)
    if temperature == 1 or n == 0:
        return bundle.sample(n, seed=seed, labels=label)
    n, seed = check.whole("n", n, 1), check.whole("seed", seed, 0, SEEDS)
    check.fits_memory(n, bundle.energy_shape)
    parts = []
    for block, start in enumerate(range(0, n, BLOCK)):
        *_, last = _block(bundle, block, min(BLOCK, n - start), seed, temperature, label, 1)
        parts.append(last)
    return bundle.decode(torch.cat(parts))


def draw_frames(
    bundle: "Bundle", n: int, *, seed: int = 0, temperature: float = 1.0, label: int | None = None, frames: int = 12
) -> Iterator[tuple[Tensor, Tensor]]:
    """(x (n, *) in data units, E(x) (n,) nats) about `frames` times, the draws of `draw` last. At most 100 chains.

    Positions at a noise level are shown as they are, noise and all; E is the bundle's own energy throughout.
    """
    check.positive(temperature=temperature)
    check.finite(temperature=temperature)
    n, frames = check.whole("n", n, 1, BLOCK), check.whole("frames", frames, 1)
    seed = check.whole("seed", seed, 0, SEEDS)
    for z in _block(bundle, 0, n, seed, temperature, label, frames):
        x = bundle.decode(z)
        yield x, bundle.energy(x)


def _block(
    bundle: "Bundle", block: int, rows: int, seed: int, temperature: float, label: int | None, frames: int
) -> Iterator[Tensor]:
    """Positions of the first rows of a block of 100 in model units, about so many times."""
    labels = None if label is None else classes.check_labels(bundle, label, rows)
    if isinstance(bundle.model, NoiseConditional):
        made = _annealed(bundle, bundle.model, block, rows, seed, temperature, labels, frames)
    else:
        made = _chain(bundle, block, rows, seed, temperature, labels, frames)
    while True:
        with torch.inference_mode(False), torch.no_grad():  # not around a yield, which the caller's loop would be under
            x = next(made, None)
        if x is None:
            return
        yield x


def _annealed(
    bundle: "Bundle",
    model: NoiseConditional,
    block: int,
    rows: int,
    seed: int,
    temperature: float,
    labels: Tensor | None,
    frames: int,
) -> Iterator[Tensor]:
    draws = generator(seed, "sample", block, device=bundle.device)
    x = model.prior(BLOCK, draws)[:rows]
    sampler: Any = require_annealed(bundle.sampler) if temperature == 1 else Heun(num_steps=LEVELS)
    given: Any = model if labels is None else classes.of_classes(bundle.model, labels, 1.0)(0, rows)
    kernel, shown = of_block(sampler, BLOCK), _shown(sampler.num_steps, frames)
    state = sampler.init(given, x)
    for first, last in pairwise([*shown, sampler.num_steps]):
        yield state.x
        with frozen(given) as energy:
            for i in range(first, last):
                state, _ = kernel.step(energy, state, kernel.draw(state, draws))
                if temperature != 1:
                    level = sampler.sigma(energy, torch.as_tensor(i + 1, device=x.device), x) ** 2
                    state = state._replace(x=_corrected(energy, state.x, level, temperature, draws))
    with frozen(given) as energy:
        x = denoise(energy, state.x, x.new_full((), model.t_min))
    yield x


def _corrected(energy: AnyEnergy, x: Tensor, level: Tensor, temperature: float, draws: torch.Generator) -> Tensor:
    """Steps that leave exp(-U(., level) / T) as it is."""
    at_level, kernel = AtNoise(energy, level), of_block(MALA(step_size=0.2 * level, temperature=temperature), BLOCK)
    state = kernel.init(at_level, x)
    for _ in range(CORRECTIONS):
        state, _ = kernel.step(at_level, state, kernel.draw(state, draws))
    return state.x


def _chain(
    bundle: "Bundle", block: int, rows: int, seed: int, temperature: float, labels: Tensor | None, frames: int
) -> Iterator[Tensor]:
    draws = generator(seed, "sample", block, device=bundle.device)
    size = (BLOCK, *bundle.shape)
    x = initial_positions(bundle.kind, bundle.transform, size, draws, bundle.model, start_law(bundle))[:rows]
    if temperature == 1 and isinstance(bundle.model, HasExactDraws):
        yield x  # drawn exactly: there is no way to watch
        return
    chain_seed = generator(seed, "sample-chain", block).initial_seed()
    energy: EnergyFn = bundle.model if labels is None else classes.of_classes(bundle.model, labels, 1.0)(0, rows)
    sampler, energy = _tempered(bundle.sampler, energy, temperature)
    total, done = chain_steps(bundle), 0
    for end in [*_shown(total, frames)[1:], total]:
        yield x
        x = run_chain(of_block(sampler, BLOCK), energy, x, num_steps=end - done, seed=chain_seed, start=done)
        done = end
    yield x


def _shown(steps: int, frames: int) -> list[int]:
    """Numbers of steps before which positions are shown, from 0; the last frame is the end itself."""
    return sorted({int(i) for i in np.linspace(0, steps, max(frames, 2))[:-1]})


def _tempered(kernel: Sampler[Any], energy: EnergyFn, temperature: float) -> tuple[Sampler[Any], EnergyFn]:
    """The kernel and the energy whose law is exp(-E / (T T0))."""
    if temperature == 1:
        return kernel, energy
    if isinstance(kernel, HasChainTemperature) and dataclasses.is_dataclass(kernel):
        own = 1.0 if kernel.temperature is None else kernel.temperature
        if isinstance(own, int | float):
            changed: Any = kernel
            return dataclasses.replace(changed, temperature=own * temperature), energy
    return kernel, Tempered(energy, 1 / temperature)
