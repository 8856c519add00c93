"""Energies along paths: straight from one example to another, through the noise levels, and of the sampler's chains.

The straight line between two examples leaves the data: half one digit and half another is no digit, and has a high
energy. A *path through the noise* takes both examples up the probability-flow ODE dy/dsigma = sigma grad U(y, sigma²)
(Song et al. 2021) to a level where such a mixture is likely, mixes them there, and takes the mixtures down again.
"""

import itertools
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.apps.landscape.data_energy import Model, at_level, noise_levels
from thalweg.apps.landscape.surface import Energy, energies
from thalweg.bundle.bundle import Bundle
from thalweg.bundle.model_units import initial_positions
from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.base import NoiseConditional
from thalweg.sampler.annealed import denoise, heun_step
from thalweg.sampler.base import require_annealed
from thalweg.sampler.chain import of_block, transitions

CHAIN_STEPS = 400
WALK = 60  # steps of a Langevin chain of which each is kept


class Path(NamedTuple):
    """Positions x (n, *) in data units at shares w (n,) of the way, and their energies u (n,) nats."""

    w: Float[Tensor, " n"]
    x: Float[Tensor, "n *d"]
    u: Float[Tensor, " n"]

    @property
    def barrier(self) -> float:
        """How far the highest energy on the way lies above the higher of its ends, in nats."""
        return float(self.u.max() - torch.maximum(self.u[0], self.u[-1]))


class Trace(NamedTuple):
    """States of a sampler's chains, on the CPU.

    Args:
        level: Noise deviations in model units, or step numbers where the energy has no noise levels, (S,).
        x: Positions in data units, (S, n, *).
        u: Their energies at that level, nats, (S, n).
        noisy: Whether the energy has noise levels.
    """

    level: Float[Tensor, " s"]
    x: Float[Tensor, "s n *d"]
    u: Float[Tensor, "s n"]
    noisy: bool


def interpolation(energy: Energy, a: Float[Tensor, "*d"], b: Float[Tensor, "*d"], *, num: int = 33) -> Path:
    """E((1 - w) a + w b) at `num` even shares w from 0 to 1. The ends are a and b themselves, to the last bit."""
    if a.shape != b.shape:
        text = f"must have one shape, and have {tuple(a.shape)} and {tuple(b.shape)}"
        raise UserError(text, argument="examples")
    check.whole("num", num, 2)
    w = torch.linspace(0, 1, num)
    x = torch.stack([(1 - v) * a + v * b for v in w])
    return Path(w, x, energies(energy, x))


def through_noise(
    bundle: Bundle,
    model: Model,
    a: Float[Tensor, "*d"],
    b: Float[Tensor, "*d"],
    *,
    top: float = 2.0,
    num: int = 17,
    num_steps: int = 24,
) -> Path:
    """The path from a to b through noise deviation `top` (model units), energies at the lowest level. Up and down by
    Heun's method in `num_steps` steps, 4 num_steps gradients in all; mixtures of the two ends keep the noise's length:
    with cos and sin in place of 1 - w and w, about the mean of the data. Its ends are a and b but for the integrator's
    error. UserError for an energy without noise levels.
    """
    if not bundle.noisy:
        text = "must have noise levels for a path through the noise"
        raise UserError(text, argument=str(bundle.path), hint="use `interpolation`")
    sigmas = noise_levels(bundle, num_steps + 1, top=min(top, math.sqrt(bundle.t_max)))
    z = bundle.encode(torch.stack([a, b]))
    high = _probability_flow(model, z, sigmas[::-1])
    w = torch.linspace(0, 1, num)
    angle = (w * math.pi / 2).view(-1, *[1] * a.ndim).to(z.device)
    centre = z.mean()
    mixed = centre + angle.cos() * (high[0] - centre) + angle.sin() * (high[1] - centre)
    x = bundle.transform.inverse(_probability_flow(model, mixed, sigmas)).cpu()
    return Path(w, x, energies(at_level(bundle, model), x))


def _probability_flow(model: Model, y: Tensor, sigmas: list[float]) -> Tensor:
    """The probability flow through these levels, in model units, by Heun's method."""
    for now, then in itertools.pairwise(torch.tensor(sigmas, dtype=torch.float32, device=y.device)):
        y, _ = heun_step(model, y, now, then)
    return y


def denoising(bundle: Bundle, model: Model, n: int = 16, *, seed: int = 0, keep: int = 40) -> Trace:
    """The bundle's own sampler on `n` chains from its start to its end, about `keep` of its states with their energies.

    Noise-conditional: U(y, sigma²) at each level from sigma_max down. Otherwise E(x) along Langevin chains from noise.
    """
    z, draws = _start(bundle, n, seed), generator(seed, "landscape-chains", device=bundle.device)
    annealed = require_annealed(bundle.sampler) if bundle.noisy else None
    num_steps = annealed.num_steps if annealed else CHAIN_STEPS
    kept = _kept(num_steps, keep, bundle.noisy)
    states = [z]
    for step, (state, _) in enumerate(transitions(of_block(bundle.sampler, n), model, z, draws), 1):
        if step in kept:
            states.append(state.x)
        if step == num_steps:
            break
    steps = torch.tensor([0, *kept])
    level = torch.stack([annealed.sigma(model, i, z).cpu() for i in steps]) if annealed else steps.float()
    rows = [bundle.transform.inverse(y).cpu() for y in states]
    u = [
        energies(at_level(bundle, model, float(s) if bundle.noisy else None), x)
        for s, x in zip(level, rows, strict=True)
    ]
    return Trace(level, torch.stack(rows), torch.stack(u), bundle.noisy)


def ends(bundle: Bundle, model: Model, trace: Trace) -> Float[Tensor, "n *d"]:
    """The samples at the end of a trace through noise levels, in data units, images in [0, 1].

    As the sampler does, by one denoising step y - t grad U(y, t) at the lowest level.
    """
    z, t = bundle.encode(trace.x[-1]), torch.tensor(bundle.t_min, dtype=torch.float32, device=bundle.device)
    return bundle.decode(denoise(model, z, t)).cpu()


def _start(bundle: Bundle, n: int, seed: int) -> Tensor:
    """Where the bundle's chains begin, in model units."""
    draws = generator(seed, "landscape-start", device=bundle.device)
    if isinstance(bundle.model, NoiseConditional):
        return bundle.model.prior(n, draws)
    start = initial_positions(bundle.kind, bundle.transform, (n, *bundle.shape), draws)
    return start if bundle.kind == "image" else 2.5 * start  # wider than the data, so that the chains' paths are seen


def _kept(num_steps: int, keep: int, noisy: bool) -> list[int]:
    """Step numbers to keep: evenly down the noise; of a Langevin chain each of the first 60, where it falls, then
    fewer.
    """
    if noisy:
        return sorted({max(1, round(num_steps * k / keep)) for k in range(1, keep + 1)})
    later = [WALK + 10 * k * k for k in range(1, 20)]
    return [step for step in [*range(1, WALK + 1), *later] if step <= num_steps]


def noised(bundle: Bundle, model: Model, x: Float[Tensor, "n *d"], sigmas: list[float], *, seed: int = 0) -> Tensor:
    """U(f(x) + sigma eps, sigma²) of data at each level, (S, n) nats: what a sampler's energies should be like."""
    z, found = bundle.transform.forward(x), []
    for i, sigma in enumerate(sigmas):
        eps = torch.randn(z.shape, generator=generator(seed, "landscape-noise", i))
        found.append(energies(at_level(bundle, model, sigma), bundle.transform.inverse(z + sigma * eps)))
    return torch.stack(found)
