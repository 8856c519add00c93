"""Annealing on real space and on the unit box: coordinates z in which the base law is a standard one.

Positions are x = y, or x = sigmoid(y) on the box, with y = m + L z. m and L L' are the mean and covariance of chains.
The base law of z is standard normal, and logistic of variance 1 on the box, where -log |dx/dy| belongs to the energy
and the integral exists for any bounded energy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional

from thalweg.core.errors import UserError, kind_of
from thalweg.core.rng import generator as address
from thalweg.energy.base import EnergyFn, energy_and_grad
from thalweg.normaliser.plan import ACCEPTANCE
from thalweg.normaliser.tempering import BaseLaw, Geometric, Target
from thalweg.sampler.base import Sampler
from thalweg.sampler.langevin import MALA

MOST_ROUNDS, ROUND_STEPS = 60, 30
BOUND = 1e12  # on any coordinate of a chain
LEAST_ACCEPTED = 0.3  # chains that hardly move stay where they are, and have not settled
GAIN = 0.5  # of log step size by acceptance, a step
CLIP = 1.0  # of a step's drift, in deviations of the base law, so that no chain sticks where gradients are large
SCALE = math.pi / math.sqrt(3)  # of a logistic law of variance 1
MOST_FITTED = 2000  # chains that the Gaussian is fitted to
FAR = (1e3, 1e4, 1e5)  # deviations from the mean between which an energy must rise


@dataclass(frozen=True)
class InCoordinates:
    """E(x(z)) - log |dx/dy|, z (B, D) in float64 to (B,) nats, of an energy of x (B, *) in its own precision.

    Args:
        energy: E(x).
        shape: Of one position x.
        dtype: The type of x.
        mean: m (D,).
        factor: L (D, D).
        box: Whether x = sigmoid(y).
    """

    energy: EnergyFn
    shape: Sequence[int]
    dtype: torch.dtype
    mean: Float[Tensor, " d"]
    factor: Float[Tensor, "d d"]
    box: bool

    def spread(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """y = m + L z."""
        return self.mean + z @ self.factor.T

    def positions(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b *d"]:
        """x, in its own type."""
        y = self.spread(z)
        return (y.sigmoid() if self.box else y).to(self.dtype).unflatten(1, tuple(self.shape))

    def coordinates(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b d"]:
        """z, of positions x; those on the walls of the box are moved inside."""
        y = x.flatten(1).double()
        if self.box:
            y = y.clamp(1e-7, 1 - 1e-7).logit()
        return torch.linalg.solve_triangular(self.factor, (y - self.mean).T, upper=False).T

    def __call__(self, z: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        u = self.energy(self.positions(z)).double()
        return u + _log_slope(self.spread(z)).sum(1) if self.box else u

    def value_and_grad(self, z: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
        """The energy and its gradient in z."""
        u, g = energy_and_grad(self.energy, self.positions(z))
        u, g = u.double(), g.flatten(1).double()
        if self.box:
            y = self.spread(z)
            s = y.sigmoid()
            u, g = u + _log_slope(y).sum(1), g * s * (1 - s) + 2 * s - 1
        return u, g @ self.factor


def _log_slope(y: Tensor) -> Tensor:
    """-log of the derivative of the sigmoid."""
    return functional.softplus(y) + functional.softplus(-y)


@dataclass(frozen=True)
class Normal:
    """The standard normal law of z (B, D), as the law N(m, L L') of y: E(z) = |z|² / 2."""

    mean: Float[Tensor, " d"]
    factor: Float[Tensor, "d d"]

    @property
    def log_z(self) -> Float[Tensor, ""]:
        """(D log 2 pi) / 2 + log det L: integrals over z are those over y less log det L, added here once."""
        return 0.5 * len(self.mean) * math.log(2 * math.pi) + self.factor.diagonal().log().sum()

    def __call__(self, z: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return 0.5 * z.square().sum(1)

    def value_and_grad(self, z: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
        """The energy and its gradient."""
        return self(z), z

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n d"]:
        """n exact draws."""
        kind = {"dtype": torch.float64, "device": self.mean.device}
        return torch.randn(n, len(self.mean), generator=generator, **kind)


@dataclass(frozen=True)
class Logistic(Normal):
    """Independent standard logistic laws of s z, s = pi / sqrt(3): of variance 1, with the tails of log-odds.

    E(z) = sum_i (softplus(s z_i) + softplus(-s z_i)). Uniform positions on the box follow it for m = 0 and L = s.
    """

    @property
    def log_z(self) -> Float[Tensor, ""]:
        """log det L - D log s."""
        return self.factor.diagonal().log().sum() - len(self.mean) * math.log(SCALE)

    def __call__(self, z: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return _log_slope(SCALE * z).sum(1)

    def value_and_grad(self, z: Float[Tensor, "b d"]) -> tuple[Tensor, Tensor]:
        """The energy and its gradient."""
        return self(z), SCALE * (SCALE * z / 2).tanh()

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n d"]:
        """n exact draws."""
        kind = {"dtype": torch.float64, "device": self.mean.device}
        return torch.rand(n, len(self.mean), generator=generator, **kind).clamp(min=1e-16).logit() / SCALE


@dataclass(frozen=True)
class Given:
    """The caller's law of positions x, in the coordinates of a target."""

    law: BaseLaw
    inside: InCoordinates

    @property
    def log_z(self) -> float:
        """As the caller states it."""
        return float(self.law.log_z)

    def __call__(self, z: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return self.law(self.inside.spread(z).unflatten(1, tuple(self.inside.shape))).double()

    def draw(self, n: int, generator: Generator) -> Float[Tensor, "n d"]:
        """n draws of the caller's law."""
        return self.inside.coordinates(self.law.draw(n, generator).to(self.inside.mean))


def moments(y: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """(m, L) of rows: their mean, and a factor of their covariance, shrunk to its diagonal by D / (n + D)."""
    n, d = y.shape
    mean = y.mean(0)
    covariance = (y - mean).T @ (y - mean) / max(n - 1, 1)
    diagonal = covariance.diagonal().clamp(min=1e-300).diag()
    factor, failed = torch.linalg.cholesky_ex(torch.lerp(covariance, diagonal, d / (n + d)))
    return mean, diagonal.sqrt() if failed else factor


def fit(energy: EnergyFn, y: Float[Tensor, "n d"], like: dict[str, Any], generator: Generator) -> Tensor:
    """Positions y of chains that began at y: MALA in coordinates that are fitted anew to the chains after each round.

    It ends when their quartiles stay for two rounds. `like`: what `InCoordinates` takes beside. UserError where chains
    do not settle.
    """
    d = y.shape[1]
    largest = math.log(0.5 * d ** (-1 / 3))
    log_step, mean, factor, settled = largest, y.mean(0), torch.eye(d).to(y), 0
    for _ in range(MOST_ROUNDS):
        inside = InCoordinates(energy, mean=mean, factor=factor, **like)
        z = torch.linalg.solve_triangular(factor, (y - mean).T, upper=False).T
        state, pooled, before, accepted = MALA(step_size=1.0).init(inside, z), [], y, 0.0
        for k in range(ROUND_STEPS):
            kernel = MALA(step_size=math.exp(log_step))
            state, info = kernel.step(inside, state, kernel.draw(state, generator))
            rate = float(info.acceptance.mean())
            log_step, accepted = log_step + GAIN * (rate - ACCEPTANCE), accepted + rate / ROUND_STEPS
            if k % 10 == 9:
                pooled.append(inside.spread(state.x))
        y = pooled[-1]
        if not bool((y.abs() < BOUND).all()):
            break
        settled = settled + 1 if accepted > LEAST_ACCEPTED and _settled(before, y) else 0
        if settled == 2:
            return y
        mean, factor = moments(torch.cat(pooled[-2:]))
        log_step = min(log_step, largest)
    raise diverges("its chains leave every bound")


def _settled(before: Float[Tensor, "n d"], after: Float[Tensor, "n d"]) -> bool:
    """Whether medians and quartiles are where they were, on average over the coordinates; heavy tails do not count."""
    share = torch.tensor([0.25, 0.5, 0.75]).to(before)
    (low, middle, high), (low_now, middle_now, high_now) = (torch.quantile(y, share, 0) for y in (before, after))
    grown = ((high_now - low_now) / (high - low)).log().mean()
    moved = ((middle_now - middle).abs() / (high_now - low_now)).mean()
    return bool((grown.abs() < 0.2) & (moved < 0.3))


def real_annealing(
    energy: EnergyFn,
    like: Tensor,
    *,
    box: bool,
    start: Tensor | None,
    base: BaseLaw | None,
    sampler: Sampler[Any] | None,
    num_chains: int,
    seed: int,
) -> Geometric:
    """The annealing to an energy of real positions, of the type and shape of `like` (0, *).

    From the caller's base law, or from a Gaussian that is fitted to chains.
    """
    draws = address(seed, "log-z-fit", device=like.device)
    shape, d = like.shape[1:], math.prod(like.shape[1:])
    kind = {"dtype": torch.float64, "device": like.device}
    plain = {"shape": shape, "dtype": like.dtype, "box": box}
    whole = InCoordinates(energy, mean=torch.zeros(d, **kind), factor=torch.eye(d, **kind), **plain)
    if base is not None:
        if not isinstance(base, BaseLaw):
            hint = "such as energy.analytic.Gaussian"
            raise UserError(f"must be a law with `log_z` and `draw`, not {kind_of(base)}", argument="base", hint=hint)
        y = base.draw(max(num_chains, 10 * d), draws)
        if y.shape[1:] != shape:
            text = f"must draw positions of the shape of `shape`, {tuple(shape)}, not {tuple(y.shape[1:])}"
            raise UserError(text, argument="base")
        y = y.to(like.device).flatten(1).double()
        inside = InCoordinates(energy, mean=y.mean(0), factor=moments(y)[1], **plain)
        law = Given(base, inside)
    else:
        n = max(num_chains, min(2 * d, MOST_FITTED))
        if start is not None:
            y = whole.coordinates(start[torch.arange(n, device=like.device) % len(start)])
        elif box:
            y = torch.rand(n, d, generator=draws, **kind).logit()
        else:
            y = torch.randn(n, d, generator=draws, **kind)
        with torch.no_grad():
            energy(whole.positions(y))  # checked to be numbers
        mean, factor = moments(fit(energy, y, plain, draws))
        inside = InCoordinates(energy, mean=mean, factor=factor, **plain)
        law = Logistic(mean, factor) if box else Normal(mean, factor)
    if not box:
        check_tails(inside, draws)
    return Geometric(
        law, Target(inside), MALA(step_size=1.0, clip=CLIP) if sampler is None else sampler, inside.coordinates
    )


def check_tails(inside: InCoordinates, generator: Generator) -> None:
    """UserError where the energy does not rise far from the mean, by D log r along a ray, as an integral needs it.

    It must fail to rise twice: where a ray crosses a curved valley it falls once.
    """
    d = len(inside.mean)
    rays = functional.normalize(Normal(inside.mean, inside.factor).draw(128, generator))
    axes = torch.eye(d).to(rays)[:64]
    rays = torch.cat([rays, axes, -axes])
    with torch.no_grad():
        u = torch.stack([inside(rays * r * math.sqrt(d)) for r in FAR])
    bad = (u.diff(dim=0) <= d * math.log(FAR[1] / FAR[0])).all(0)
    if bool(bad.any()):
        raise diverges(f"far from its chains it does not rise along {int(bad.sum())} of {len(rays)} rays")


def diverges(why: str) -> UserError:
    """The error for an energy whose integral does not exist."""
    hint = 'use support="box" for positions in [0, 1], or add a term that confines it, such as a Gaussian\'s'
    return UserError(f"must have a finite integral of exp(-E); {why}", argument="energy", hint=hint)
