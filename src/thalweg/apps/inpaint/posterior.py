"""Draws from the posterior p(x | observation) by the noise-conditional energy U(y, t).

Guided reverse diffusion from a coarse posterior draw, then MALA steps at the lowest level. At level t the denoiser
D(y) = y - t grad U is the mean of x given y, and a Gaussian with the data's own covariance, V_t = (C^-1 + I/t)^-1,
stands for its spread. Conditioning that Gaussian on the observation b = A x + s n,

    x^ = D(y) + V_t A' (A V_t A' + s²)^-1 (b - A D(y)),

corrects the missing pixels at once. Replacing the observed pixels alone (RePaint; Lugmayr et al. 2022) leaves that to
the next evaluations of the network. Then y moves to the next level t' as given x^:

    y' = x^ + (t'/t) (y - x^) + sqrt(t' (1 - t'/t)) z.

(Song et al. 2023 guide with a scalar V_t and the network's Jacobian; the anchor's V_t is full and costs no second
backward pass.) The chain starts at `sigma_start` from a draw of a coarse model's posterior, which saves the levels
above: of the bundle's mixture of factor analysers or, without one, of the anchor's Gaussian. For a Gaussian energy all
this is exact as the number of steps grows. For any other energy, MALA steps on
`energy.linear_observation.PosteriorEnergy` follow at the lowest levels: exact but for noise sqrt(t) on the observation.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import Anchored, GaussianMoments, HasNoiseLevels, HasShape, NoisyEnergyFn, lacking
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.energy.density.gaussian import SmoothedGaussian
from thalweg.energy.linear_observation import CovarianceProduct, LinearObservation, PosteriorEnergy
from thalweg.energy.wrappers import AtNoise
from thalweg.sampler.annealed import denoise, karras_level
from thalweg.sampler.langevin import MALA

# Chosen on training digits from 1 to 30: lower values make completions too alike, higher ones cost right readings.
NOISE_INFLATION = 20.0
NETWORK_ROWS = 96  # evaluated together: larger batches leave the processor's cache


class Denoiser(HasNoiseLevels, HasShape, NoisyEnergyFn, Protocol):
    """U(y, t), (B, *shape) and (B,) to (B,) nats, with noise levels: the mean of x given y is y - t grad U(y, t)."""


class Observation(NamedTuple):
    """What is known of some rows of a batch, in model units.

    Attributes:
        rows: The numbers of the rows, (r,).
        linear: The directions that are known.
        projections: The rows' values along them, (r, m).
    """

    rows: Int[Tensor, " r"]
    linear: LinearObservation
    projections: Float[Tensor, "r m"]

    def to(self, device: torch.device) -> "Observation":
        """The same on a device."""
        return Observation(self.rows.to(device), self.linear.to(device), self.projections.to(device))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The noise levels of a posterior draw and the steps at each.

    Costs num_steps resampling + 1 + corrected (num_corrections + 1) gradients. The defaults suit a start from the
    mixture, `Schedule.wide()` a start from one Gaussian.

    Args:
        num_steps: Levels from `sigma_start` down to the energy's lowest.
        resampling: How often each step is taken; a repetition starts where noise brings the step's end back to its
            start (Lugmayr et al. 2022), which lets the missing pixels settle.
        sigma_start: The highest noise level, in model units.
        rho: The exponent of the levels' spacing, as in `sampler.annealed`.
        corrected: The number of lowest levels at which MALA steps follow.
        num_corrections: MALA steps at each of these.
        step_size: Of MALA, in units of t.
        chain_steps: Steps of the chain of an energy without noise levels, to which none of the above applies.
    """

    num_steps: int = 7
    resampling: int = 1
    sigma_start: float = 0.6
    rho: float = 3.0
    corrected: int = 1
    num_corrections: int = 1
    step_size: float = 0.3
    chain_steps: int = 500

    def __post_init__(self):
        check.count(num_steps=self.num_steps, resampling=self.resampling)
        for name in ("corrected", "num_corrections", "chain_steps"):
            check.whole(name, getattr(self, name), 0)

    @classmethod
    def wide(cls) -> "Schedule":
        """From a level at which a Gaussian is a fair model of the data."""
        return cls(num_steps=10, resampling=3, sigma_start=1.0)

    def levels(self, energy: HasNoiseLevels) -> list[float]:
        """Noise levels sigma, highest first."""
        low, high = energy.t_min**0.5, min(self.sigma_start, energy.t_max**0.5)
        check.increasing(sigma_min=low, sigma_start=high)
        shares = torch.arange(self.num_steps + 1, dtype=torch.float64) / self.num_steps
        return karras_level(shares, low, high, self.rho).tolist()


@dataclass(frozen=True)
class GaussianPrior:
    """The Gaussian N(m, C) of the data, whose covariance given y stands for the denoiser's uncertainty.

    Args:
        moments: m and C, in model units.
    """

    moments: GaussianMoments

    @classmethod
    def of(cls, energy: object) -> "GaussianPrior":
        """The anchor of an energy; UserError where it has none."""
        if not isinstance(energy, Anchored):
            text = f"must keep a Gaussian of the data; {lacking(energy, Anchored)}"
            raise UserError(text, argument="energy", hint="give `gaussian`")
        return cls(energy.anchor)

    def covariance(self, t: float | None = None) -> Float[Tensor, "d d"] | CovarianceProduct:
        """(C^-1 + I/t)^-1; C itself without a t. A matrix where the Gaussian keeps one."""
        moments, spectrum = self.moments, self.moments.spectrum
        kept = spectrum if t is None else spectrum * t / (spectrum + t)
        if isinstance(moments, SmoothedGaussian):
            return (moments.basis * kept) @ moments.basis.T
        return SpectralCovariance(moments, kept)

    def sample(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """m + C^(1/2) z."""
        return self.moments.mean + self.moments.combination(z * self.moments.spectrum.sqrt())


@dataclass(frozen=True)
class SpectralCovariance:
    """V diag(values) V' as its products; V is that of the moments."""

    moments: GaussianMoments
    values: Tensor

    @property
    def scale(self) -> float:
        """The mean of the values."""
        return float(self.values.mean())

    def __call__(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """The product with each row."""
        return self.moments.combination(self.values * self.moments.coordinates(x))

    def solve(self, x: Float[Tensor, "b d"], noise: float) -> Float[Tensor, "b d"]:
        """The product of the inverse, after noise I is added, with each row."""
        return self.moments.combination(self.moments.coordinates(x) / (self.values + noise))


class RowNoise:
    """Random rows, each from a generator of its own, so that no row depends on its neighbours; on their device."""

    def __init__(self, generators: Sequence[Generator], size: int):
        self.generators, self.size = generators, size

    def normal(self) -> Float[Tensor, "b d"]:
        """Standard normal, (B, D)."""
        return torch.stack([torch.randn(self.size, generator=g, device=g.device) for g in self.generators])

    def uniform(self) -> Float[Tensor, " b"]:
        """Uniform on [0, 1), (B,)."""
        return torch.cat([torch.rand(1, generator=g, device=g.device) for g in self.generators])


@torch.no_grad()
def sample_posterior(
    energy: Denoiser,
    observations: Sequence[Observation],
    noise: RowNoise,
    schedule: Schedule,
    gaussian: GaussianPrior | None = None,
    mixture: MixtureOfFactorAnalyzers | None = None,
) -> Float[Tensor, "b d"]:
    """One draw of x for each row, flat, in model units; every row is in one of the observations."""
    gaussian = gaussian or GaussianPrior.of(energy)
    sigma = schedule.levels(energy)
    if mixture is None:
        prior, z = gaussian.sample(noise.normal()), noise.normal()
        start = _conditioned(prior, gaussian.covariance(), observations, z)
    else:
        start = sample_mixture(mixture, observations, noise)
    y = start + sigma[0] * noise.normal()
    for i, (now, then) in enumerate(itertools.pairwise(sigma)):
        covariance, keep = gaussian.covariance(now**2), (then / now) ** 2
        for repetition in range(schedule.resampling):
            if repetition:
                y = y + (now**2 - then**2) ** 0.5 * noise.normal()
            x = _conditioned(_denoise(energy, y, now**2), covariance, observations)
            y = x + keep * (y - x) + then * (1 - keep) ** 0.5 * noise.normal()
        if i >= schedule.num_steps - schedule.corrected and schedule.num_corrections:
            y = _corrected(energy, y, then**2, observations, noise, schedule)
    x = _denoise(energy, y, sigma[-1] ** 2)
    return _conditioned(x, gaussian.covariance(sigma[-1] ** 2), observations)


def sample_mixture(
    mixture: MixtureOfFactorAnalyzers, observations: Sequence[Observation], noise: RowNoise
) -> Float[Tensor, "b d"]:
    """A draw of the mixture's posterior for each row."""
    z, u = noise.normal(), noise.uniform()
    start = torch.empty_like(z)
    for rows, linear, projections in observations:
        some = z[rows, : mixture.basis.shape[1]]
        start[rows] = mixture.sample_posterior(linear, projections, some, u[rows], noise_inflation=NOISE_INFLATION)
    return start


def _conditioned(
    mean: Tensor, covariance: Tensor | CovarianceProduct, observations: Sequence[Observation], z: Tensor | None = None
) -> Tensor:
    """A Gaussian N(mean, covariance) conditioned on the observations: its mean or, given noise z, a draw.

    Matheron's rule: a draw of the prior is moved by the same gain as the mean.
    """
    updated = mean.clone()
    for rows, linear, projections in observations:
        residual = projections - linear.projections_of(mean[rows])
        if z is not None:
            residual = residual + linear.noise * linear.projections_of(z[rows])
        updated[rows] += linear.update(covariance, residual)
    return updated


def _denoise(energy: Denoiser, y: Tensor, t: float) -> Tensor:
    """E[x | y] of flat rows, some at a time."""
    return torch.cat([denoise(energy, part, t) for part in y.reshape(-1, *energy.shape).split(NETWORK_ROWS)]).flatten(1)


def _corrected(
    energy: Denoiser, y: Tensor, t: float, observations: Sequence[Observation], noise: RowNoise, schedule: Schedule
) -> Tensor:
    """MALA steps on y at level t given the observations; the same proposals whatever rows share the batch."""
    z = noise.normal()
    draws = [(noise.normal(), noise.uniform()) for _ in range(schedule.num_corrections)]
    out = y.clone()
    for observation in observations:
        for first in range(0, len(observation.rows), NETWORK_ROWS):
            part = slice(first, first + NETWORK_ROWS)
            rows, projections, linear = observation.rows[part], observation.projections[part], observation.linear
            fixed = set_noisy_projections(y[rows], t, linear, projections, z[rows]).reshape(-1, *energy.shape)
            posterior = PosteriorEnergy(AtNoise(energy, t), t, linear, projections, fixed)
            kernel = MALA(step_size=schedule.step_size * t)
            state = kernel.init(posterior, fixed)
            for move, uniform in draws:
                state, _ = kernel.step(posterior, state, (move[rows].reshape(state.x.shape), uniform[rows]))
            out[rows] = posterior.restore(state.x).flatten(1)
    return out


def set_noisy_projections(y: Tensor, t: float, linear: LinearObservation, projections: Tensor, z: Tensor) -> Tensor:
    """y, its projections with noise below sqrt(t) set to the known values plus noise up to variance t."""
    missing = (t - linear.noise.square()).clamp(min=0).sqrt()
    wanted = projections + missing * linear.projections_of(z)
    return linear.set_projections(y, torch.where(linear.noise.square() <= t, wanted, linear.projections_of(y)))
