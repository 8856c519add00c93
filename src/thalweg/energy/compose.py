"""Wrappers that turn an energy into another: temperature, sums, labels, observed pixels, a fixed noise level.

A sampler knows none of these. Each wrapper is itself an energy, (B, *) to (B,) nats, and they nest:
`Clamped(Tempered(AtNoise(net, t), beta), observed, values)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thalweg.energy.analytic import Gaussian, GaussianMixture
from thalweg.energy.base import EnergyFn, NoisyEnergyFn
from thalweg.energy.conditional import Conditional


@dataclass(frozen=True)
class Tempered:
    """beta E(x): inverse temperature beta, a number or a tensor that broadcasts against (B,)."""

    energy: EnergyFn
    beta: float | Tensor

    @classmethod
    def example(cls) -> Self:
        """A Gaussian at temperature 2."""
        return cls(Gaussian.example(), 0.5)

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return self.beta * self.energy(x)


@dataclass(frozen=True)
class Sum:
    """sum_i w_i E_i(x): a product of experts (Hinton 2002). `weights`: a number each, all 1 if not given."""

    energies: Sequence[EnergyFn]
    weights: Sequence[float] | Tensor | None = None

    def __post_init__(self):
        if not self.energies:
            raise ValueError("energies is empty: want at least one")
        if self.weights is not None and len(self.weights) != len(self.energies):
            raise ValueError(f"{len(self.weights)} weights for {len(self.energies)} energies: want one each")

    @classmethod
    def example(cls) -> Self:
        """A Gaussian and a mixture."""
        return cls((Gaussian.example(), GaussianMixture.example()), (1.0, 0.3))

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        weights = [1.0] * len(self.energies) if self.weights is None else self.weights
        total = weights[0] * self.energies[0](x)
        for w, energy in zip(weights[1:], self.energies[1:], strict=True):
            total = total + w * energy(x)
        return total


@dataclass(frozen=True)
class Conditioned:
    """E(x, y) with the labels y held fixed: (B,), or one 0-d label for every row."""

    energy: Callable[[Tensor, Tensor], Tensor]
    labels: Int[Tensor, "..."]

    @classmethod
    def example(cls) -> Self:
        """Three classes on vectors, every row in class 2."""
        return cls(Conditional.example(), torch.tensor(2))

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return self.energy(x, self.labels.expand(len(x)))


@dataclass(frozen=True)
class Clamped:
    """E with observed pixels put back before it is evaluated: a function of the free pixels alone.

    E'(x) = E(where(observed, values, x)). The gradient at observed pixels is zero. A sampler's noise still
    moves them, to no effect on the law of the others; `restore` puts them back at the end. `observed` (bool)
    and `values` broadcast to x.
    """

    energy: EnergyFn
    observed: Bool[Tensor, "..."]
    values: Float[Tensor, "..."]

    def __post_init__(self):
        if self.observed.dtype != torch.bool:
            raise ValueError(f"observed has type {self.observed.dtype}, want torch.bool, true where known")

    @classmethod
    def example(cls) -> Self:
        """A Gaussian with its first coordinate observed."""
        return cls(Gaussian.example(), torch.tensor([True, False]), torch.tensor([0.3, 0.0]))

    def restore(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """x with the observed pixels put back."""
        return torch.where(self.observed, self.values.to(x), x)

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return self.energy(self.restore(x))


@dataclass(frozen=True)
class AtNoise:
    """U(x, t) at one noise variance t, a number or a 0-d tensor: the energy of data plus sqrt(t) eps."""

    energy: NoisyEnergyFn
    t: float | Tensor

    @classmethod
    def example(cls) -> Self:
        """Standard normal data at noise variance 0.5, up to a constant."""
        return cls(lambda y, t: 0.5 * y.flatten(1).square().sum(1) / (1 + t), 0.5)

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return self.energy(x, self._levels(x))

    def value_and_grad(self, x: Float[Tensor, "b *d"]) -> tuple[Tensor, Tensor] | None:
        """(U, dU/dx) by the energy's own short way, None where it has none."""
        own = getattr(self.energy, "value_and_grad", None)
        return None if own is None else own(x, self._levels(x))

    def _levels(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.t, dtype=x.dtype, device=x.device).expand(len(x))
