"""Which pixels raise the energy of an image, beside the likelier image that they are compared with.

a = (x - r) ∫_0^1 grad E(r + s (x - r)) ds: integrated gradients (Sundararajan, Taly & Yan 2017), by the midpoint rule.
The parts add up to E(x) - E(r), up to the rule's error.

The likelier image r: of an energy with noise levels the mean E[x0 | x0 + noise = x] at a middling level, one gradient;
of any other energy a descent by the steps of its own chains without their noise.
"""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from thalweg.energy.base import NoiseConditional
from thalweg.energy.engine.freeze import frozen
from thalweg.sampler.annealed import denoise
from thalweg.sampler.base import HasStepSize
from thalweg.sampler.chain import run_chain
from thalweg.sampler.langevin import ULA

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle

POINTS = 16  # of the integral
DESCENT = 40  # steps


def has_reasons(bundle: "Bundle") -> bool:
    """Whether a likelier image can be found: there are noise levels, or chains whose steps have a size."""
    return bundle.kind == "image" and (bundle.noisy or isinstance(bundle.sampler, HasStepSize))


def image_reasons(bundle: "Bundle", x: Tensor) -> tuple[Tensor, Tensor]:
    """(each pixel's part (B, H, W) nats, summed over channels, the likelier images (B, C, H, W)); x in data units."""
    r = likelier(bundle, x)
    with torch.inference_mode(False), torch.enable_grad():
        total = torch.zeros_like(x)
        for i in range(POINTS):
            at = (r + (i + 0.5) / POINTS * (x - r)).requires_grad_()
            (g,) = torch.autograd.grad(bundle.energy(at).sum(), at)
            total += g
    return ((x - r) * total / POINTS).sum(1), r


def likelier(bundle: "Bundle", x: Tensor) -> Tensor:
    """Images near x of lower energy, in data units."""
    z = bundle.encode(x)
    with torch.inference_mode(False), torch.no_grad():
        if isinstance(bundle.model, NoiseConditional):
            t = float(np.sqrt(bundle.t_min * bundle.t_max))
            with frozen(bundle.model) as energy:
                return bundle.decode(denoise(energy, z, t)).to(x)
        return bundle.decode(run_chain(_descent(bundle), bundle.model, z, num_steps=DESCENT)).to(x)


def _descent(bundle: "Bundle") -> ULA:
    sampler = bundle.sampler
    if isinstance(sampler, ULA):
        return dataclasses.replace(sampler, temperature=0.0)
    assert isinstance(sampler, HasStepSize)  # asked for by `has_reasons`
    return ULA(step_size=sampler.step_size, temperature=0.0)
