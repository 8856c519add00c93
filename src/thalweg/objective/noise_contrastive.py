"""Noise-contrastive estimation: tell data from draws of a known law, and so learn a normalised energy.

With nu noise rows y ~ q for each row of data, the classifier with log-odds G(x) = -E(x) - log q(x) - log nu is right
most often where exp(-E) is the data's density itself. So the energy's additive constant is learned like any other
parameter, and needs no integral (Gutmann & Hyvarinen 2010; 2012).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn.functional import softplus

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import Capability, EnergyFn, HasBaseLaw, lacking
from thalweg.energy.density.gaussian import SmoothedGaussian
from thalweg.energy.density.stationary import StationaryGaussian, anchor_of
from thalweg.objective.base import Batch


@runtime_checkable
class NoiseLaw(Protocol, metaclass=Capability):
    """A law that is known: its energy, its constant, exact draws. `thalweg.energy.analytic` has some."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """E(x), (B,) nats."""
        ...

    @property
    def log_z(self) -> Tensor:
        """log of the integral of exp(-E), ()."""
        ...

    def draw(self, n: int, generator: Generator, /) -> Tensor:
        """n exact draws (n, *)."""
        ...


class GaussianNoise(NamedTuple):
    """A Gaussian N(m, V diag(l) V') of D coordinates: m (D,), V (D, D), l (D,)."""

    mean: Tensor
    basis: Tensor
    spectrum: Tensor


class StationaryNoise(NamedTuple):
    """A `StationaryGaussian` of larger images, whose covariance takes K² numbers: the tensors that it stores."""

    mean: Tensor
    spectrum: Tensor
    colours: Tensor
    block: Tensor


class BaseNoise(NamedTuple):
    """The state where the energy's own base law is the noise: `like` (1, U), zeros for the numbers that make a draw."""

    like: Tensor


State = GaussianNoise | StationaryNoise | BaseNoise


@dataclass(frozen=True, kw_only=True)
class NoiseContrastive:
    """mean softplus(-G(x)) + nu mean softplus(G(y)), G = -E - log q - log nu: the logistic loss of data x and noise y.

    Costs one forward of 1 + nu batches. The energy needs an additive constant: `thalweg.train` adds one to a network
    that is given (`WithConstantEnergy`); a network that a recipe names has one in the bias of its last layer.

    Args:
        noise: q. None: the energy's own base law, where it has one (`HasBaseLaw`). Else a Gaussian fitted to the first
            batch, its covariance full and shrunk as `SmoothedGaussian` does; of images of more than 1,536 numbers
            that of `StationaryGaussian`.
        ratio: nu, noise rows for each row of data.
        widening: Factor on the deviations of the fitted Gaussian. Above 1 the energy is trained around the data too.
    """

    noise: NoiseLaw | None = None
    ratio: int = 1
    widening: float = 1.0
    normalises = True
    noisy = False
    learns_constant = True

    def __post_init__(self):
        check.count(ratio=self.ratio)
        check.positive(widening=self.widening)
        check.finite(widening=self.widening)
        if self.noise is not None and not isinstance(self.noise, NoiseLaw):
            hint = "such as thalweg.energy.analytic.Gaussian(mean, covariance)"
            raise UserError("must have an energy, log_z and draw", argument="noise", hint=hint)

    def init(self, energy: EnergyFn, x: Float[Tensor, "b *d"], generator: Generator) -> State:
        """The Gaussian of the first batch; an empty one where another law is given, or the batch is one row."""
        if self.noise is None and isinstance(energy, HasBaseLaw):
            return BaseNoise(x.new_zeros(1, energy.num_uniforms))
        rows = x.flatten(1)
        if self.noise is not None:
            return GaussianNoise(x.new_zeros(0), x.new_zeros(0, 0), x.new_zeros(0))
        varies = len(rows) > 1 and bool((rows != rows[0]).any())
        fitted = anchor_of(tuple(x.shape[1:])).to(x.device)
        fitted = fitted.fit(rows) if varies else fitted
        if isinstance(fitted, StationaryGaussian):
            return StationaryNoise(fitted.mean, self.widening**2 * fitted.spectrum, fitted.colours, fitted.block)
        assert isinstance(fitted, SmoothedGaussian)
        return GaussianNoise(fitted.mean.to(x), fitted.basis.to(x), self.widening**2 * fitted.spectrum.to(x))

    def draw(self, state: State, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """(y,): nu noise rows for each row of the batch; of a base law, the uniform numbers that make them."""
        x, n = batch.x, self.ratio * len(batch.x)
        if isinstance(state, BaseNoise):
            numbers = torch.rand(n, state.like.shape[1], generator=generator, device=generator.device)
            return (numbers.to(x),)
        if self.noise is not None:
            return (self.noise.draw(n, generator).to(x).reshape(n, *x.shape[1:]),)
        z = torch.randn(n, len(state.mean), generator=generator, dtype=x.dtype, device=x.device)
        if isinstance(state, StationaryNoise):
            law = _stationary(state, x)
            return ((state.mean + law.combination(z * state.spectrum.sqrt())).reshape(n, *x.shape[1:]),)
        return ((state.mean + (z * state.spectrum.sqrt()) @ state.basis.T).reshape(n, *x.shape[1:]),)

    def loss(
        self, energy: EnergyFn, state: State, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], State, dict[str, Tensor]]:
        """The loss in nats a row of data, the unchanged state, and metrics: where E = -log q it is that of chance."""
        (y,) = noise
        if isinstance(state, BaseNoise):
            y = _with_base_law(energy).base_draws(y)
        both = torch.cat([batch.x, y])
        u = energy(both)
        log_odds = -u - self._log_noise(state, energy)(both) - math.log(self.ratio)
        real, fake = log_odds.split([len(batch.x), len(y)])
        loss = softplus(-real).mean() + self.ratio * softplus(fake).mean()
        right = 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())
        u_real, u_fake = u.detach().split([len(batch.x), len(y)])
        return loss, state, {"energy": u_real.mean(), "energy_noise": u_fake.mean(), "accuracy": right.detach()}

    def _log_noise(self, state: State, energy: EnergyFn) -> Callable[[Tensor], Tensor]:
        """log q, (B, *) to (B,) nats."""
        if isinstance(state, BaseNoise):
            law = _with_base_law(energy)
            return lambda x: -law.base_energy(x)
        if self.noise is not None:
            law = self.noise
            return lambda x: -(law(x) + law.log_z.to(x))
        constant = 0.5 * (2 * torch.pi * state.spectrum).log().sum()

        def gaussian(x: Tensor) -> Tensor:
            z = x.flatten(1) - state.mean
            z = _stationary(state, x).coordinates(z) if isinstance(state, StationaryNoise) else z @ state.basis
            return -0.5 * (z.square() / state.spectrum).sum(1) - constant

        return gaussian


def _stationary(state: StationaryNoise, x: Tensor) -> StationaryGaussian:
    """The law of images like x whose tensors a state holds."""
    law = StationaryGaussian(tuple(x.shape[1:])).to(x)
    for name, value in state._asdict().items():
        law.get_buffer(name).copy_(value)
    return law


def _with_base_law(energy: EnergyFn) -> HasBaseLaw:
    if not isinstance(energy, HasBaseLaw):
        text = f"must have the base law that the training began with; {lacking(energy, HasBaseLaw)}"
        raise UserError(text, argument="energy")
    return energy
