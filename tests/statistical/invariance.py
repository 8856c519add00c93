"""S12: whether a kernel keeps a law. Targets with exact draws, and the test that every exact kernel must pass.

The targets' gradients are written out: what is tested is the kernel, and autograd would take most of the time.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thalweg.core.rng import generator
from thalweg.energy.analytic import Gaussian, GaussianMixture, _Analytic
from thalweg.sampler.base import Info
from thalweg.sampler.chain import transitions

from .densities import Banana, LogGamma
from .stats import assert_law, assert_near, normal_cdf

NUM_CHAINS = 200_000
POWER = 0.0065


def chi_square_2(x: Tensor) -> Tensor:
    return -torch.expm1(-0.5 * x.square().sum(1, keepdim=True))


def gaussian_uniform(energy: Gaussian, x: Tensor) -> Tensor:
    z = torch.linalg.solve_triangular(energy.factor, (x - energy.mean).T, upper=False).T
    return torch.cat([normal_cdf(z), normal_cdf((z[:, :1] - z[:, 1:]) / math.sqrt(2)), chi_square_2(z)], 1)


def mixture_uniform(energy: GaussianMixture, x: Tensor) -> Tensor:
    angle = torch.tensor([0.0, 0.5 * math.pi, 0.3, 1.2], dtype=x.dtype)
    axes = torch.stack([angle.cos(), angle.sin()])
    z = ((x @ axes).unsqueeze(1) - energy.means @ axes) / energy.scale
    return (energy.weights[:, None] * normal_cdf(z)).sum(1)


def banana_uniform(energy: Banana, x: Tensor) -> Tensor:
    z = energy.untwist(x)
    return torch.cat([normal_cdf(z), normal_cdf((z[:, :1] + z[:, 1:]) / math.sqrt(2)), chi_square_2(z)], 1)


def log_gamma_uniform(energy: LogGamma, x: Tensor) -> Tensor:
    lower = torch.special.gammainc(energy.alpha.expand_as(x), x.exp())
    total = torch.special.gammainc(energy.alpha.sum().expand(len(x), 1), x.exp().sum(1, keepdim=True))
    return torch.cat([lower, total], 1)


class _Gaussian(Gaussian):
    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        d = x - self.mean.to(x)
        g = d @ self.precision.to(x)
        return 0.5 * (d * g).sum(1), g


class DiagonalGaussian(Gaussian):
    """Independent coordinates: fast, and rounded alike for one row and for many."""

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        d = x - self.mean.to(x)
        g = d * self.precision.diagonal().to(x)
        return 0.5 * (d * g).sum(1), g


class _Mixture(GaussianMixture):
    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        means, precision = self.means.to(x), self.scale**-2
        scores = precision * (x @ means.T) + (self.weights.log() - 0.5 * precision * self.means.square().sum(1)).to(x)
        u = 0.5 * precision * x.square().sum(1) - scores.logsumexp(1)
        return u, precision * (x - scores.softmax(1) @ means)


class _Banana(Banana):
    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.untwist(x)
        first = z[:, 0] / self.scale - 2 * self.bend * x[:, 0] * z[:, 1]
        return 0.5 * z.square().sum(1), torch.stack([first, z[:, 1]], 1)


class _LogGamma(LogGamma):
    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, e = self.alpha.to(x), x.exp()
        return (e - a * x).sum(1), e - a


ILL = ((0.7525, 0.4287), (0.4287, 0.2575))  # condition number 100 about, rotated by 30 degrees


class Target(NamedTuple):
    """An energy, what makes its law uniform, and a step of MALA that is now and then rejected."""

    energy: _Analytic
    uniformise: Callable[[Any, Tensor], Tensor]
    step_size: float


TARGETS = {
    "gaussian": Target(_Gaussian((1.0, -2.0), ILL), gaussian_uniform, 0.014),
    "mixture": Target(_Mixture(scale=0.6, weights=(1, 2, 3, 4, 1, 1, 2, 1)), mixture_uniform, 0.3),
    "banana": Target(_Banana(), banana_uniform, 0.25),
    "log-gamma": Target(_LogGamma(), log_gamma_uniform, 0.35),
}


@functools.cache
def exact_draws(name: str, num_chains: int) -> Tensor:
    return TARGETS[name].energy.draw(num_chains, generator(12, name))


def check_invariance(
    name: str,
    sampler: Any,
    num_steps: int = 20,
    num_chains: int = NUM_CHAINS,
    also: Callable[[Any], Tensor] | None = None,
) -> float:
    """From exact draws, the law stays, after the first step too; chains move; each accepts on its own at the
    probability it states.

    `also` gives further columns of a state that are uniform. Gives the mean acceptance of the last step.
    """
    energy, uniformise, _ = TARGETS[name]
    draws = exact_draws(name, num_chains)

    def law(state: Any) -> None:
        columns = [uniformise(energy, state.x), *([] if also is None else [also(state)])]
        assert_law(torch.cat(columns, 1), lambda v: v, power=POWER)

    steps = transitions(sampler, energy, draws, generator(13, name))
    before = draws
    for k in range(num_steps):
        state, info = next(steps)
        if k == 0:
            law(state)
        moved, a = (state.x != before).any(1).double(), info.acceptance
        assert_near(moved.mean(), float(a.mean()), (a * (1 - a)).sum().sqrt().clamp(min=1) / num_chains)
        before = state.x
    jump = (state.x - draws).square().sum(1).mean() / energy.covariance.trace()
    assert float(jump) > 0.01, f"chains hardly moved: {float(jump):.4f} of the variance"
    law(state)
    return float(a.mean())


def check_one_by_one(sampler: Any, energy: Any, x: Tensor, num_steps: int = 30) -> None:
    """S18: a batch of chains is its chains one by one, bit-identical on CPU, given each chain's own generator.

    The energy must round one row and many alike, which a product of matrices need not do: pass `energy.forward`.
    """
    batch, info = sampler.init(energy, x), None
    singles = [sampler.init(energy, row[None]) for row in x]
    generators = [generator(18, "chain", rank=b) for b in range(len(x))]
    for _ in range(num_steps):
        draws = [sampler.draw(s, g) for s, g in zip(singles, generators, strict=True)]
        singles = [sampler.step(energy, s, n)[0] for s, n in zip(singles, draws, strict=True)]
        noise = tuple(torch.cat(parts) for parts in zip(*draws, strict=True))
        batch, info = sampler.step(energy, batch, noise)
    assert isinstance(info, Info)
    assert not torch.equal(batch.x, x)
    assert torch.equal(batch.x, torch.cat([s.x for s in singles]))
