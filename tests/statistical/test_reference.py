"""S20: chains of MALA against known moments: errors of means and variances in units of their Monte Carlo errors.

What is tested is the whole: the kernel, its chains and the diagnostics that say how far they may be off.
"""

import pytest
import torch

from thalweg.core.rng import generator
from thalweg.energy.analytic import Gaussian, GaussianMixture
from thalweg.evaluate.diagnostics import ESS, R_HAT, diagnose
from thalweg.sampler.chain import transitions
from thalweg.sampler.langevin import MALA

from .densities import Banana, Funnel, LogGamma
from .test_langevin import RootHNoise

TARGETS = {  # (energy, step size, steps)
    "log-gamma": (LogGamma((2.0, 5.0)), 0.4, 1500),
    "gaussian": (Gaussian((1.0, -2.0), ((1.0, 0.6), (0.6, 0.5))), 0.15, 4000),
    "mixture": (GaussianMixture(scale=0.6, weights=(1, 2, 3, 4, 1, 1, 2, 1)), 0.5, 30_000),
    "banana": (Banana(scale=1.0), 0.3, 12_000),
    "funnel": (Funnel(dim=2, scale=0.7), 0.4, 12_000),
}
CHAINS, WARM_UP = 8, 200


def check_moments(name: str, sampler=MALA) -> None:
    """|mean error| / MCSE < 5 for all means and variances, R-hat < 1.01, ESS in bulk and tail of 400 or more."""
    energy, step_size, num_steps = TARGETS[name]
    deviation = energy.covariance.diagonal().sqrt()
    z = torch.randn(CHAINS, len(energy.mean), generator=generator(20, name), dtype=torch.float64)
    steps = transitions(sampler(step_size=step_size), energy, energy.mean + 2 * deviation * z, generator(21, name))
    x = torch.stack([next(steps)[0].x for _ in range(WARM_UP + num_steps)][WARM_UP:], 1)
    squares = (x - energy.mean).square()
    for row, found, want in zip(
        diagnose(torch.cat([x, squares], 2)),
        torch.cat([x, squares], 2).mean((0, 1)),
        torch.cat([energy.mean, deviation**2]),
        strict=True,
    ):
        z = float(found - want) / row.mcse_mean
        assert abs(z) < 5, f"{name}: {float(found):.4f} against {float(want):.4f}, z = {z:.1f}"
        assert row.r_hat < R_HAT, row
        assert min(row.ess_bulk, row.ess_tail) >= ESS, row


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in TARGETS if name != "log-gamma"]


@pytest.mark.parametrize("name", ["log-gamma", *SLOW])
def test_s20_moments_are_right_within_their_errors(name):
    check_moments(name)


def test_s20_noise_of_sqrt_h_is_rejected():
    with pytest.raises(AssertionError, match="z ="):
        check_moments("log-gamma", RootHNoise)
