"""Wrappers that turn an energy into another: temperature, sums, labels, observed pixels, a fixed noise level.

Each wrapper is itself an energy, (B, *) to (B,) nats, and they nest:
`Clamped(Tempered(AtNoise(net, t), beta), observed, values)`. It offers those capabilities of its energy
(`energy.base`) that its class lists as `keeps`, and no others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thalweg.core.errors import UserError
from thalweg.energy.analytic import Gaussian, GaussianMixture
from thalweg.energy.base import (
    AnyEnergy,
    Capability,
    Classifier,
    Discrete,
    EnergyFn,
    HasGradient,
    HasNoiseLevels,
    HasShape,
    NoiseConditional,
    NoisyEnergyFn,
    energy_and_grad,
)

_ABSENT = object()


class EnergyWrapper:
    """Abstract: an energy made of another one, its `energy`; a subclass is a dataclass.

    `keeps` lists the capabilities that stay true: the wrapper has their members where its energy has them. A member is
    the energy's own or, where the wrapper changes its result, the method `_member` of the class, which is called only
    where the energy has the member.
    """

    keeps: ClassVar[tuple[Capability, ...]] = ()
    _kept: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        cls._kept = frozenset(name for capability in cls.keeps for name in capability.members())

    def _inner(self) -> Sequence[AnyEnergy]:
        """The energies whose capabilities count: one that offers a member is enough."""
        return (cast(Any, self).energy,)

    def over(self, change: Callable[[AnyEnergy], AnyEnergy]) -> Self:
        """The same over `change` of the energy."""
        return replace(cast(Any, self), energy=change(cast(Any, self).energy))

    def __getattr__(self, name: str) -> Any:
        """A kept member; AttributeError for any other name."""
        for energy in self._inner() if name in self._kept else ():
            theirs = getattr(energy, name, _ABSENT)
            if theirs is not _ABSENT:
                own = getattr(type(self), f"_{name}", None)
                return theirs if own is None else own.__get__(self)
        raise AttributeError(f"{type(self).__name__} has no {name}")


@dataclass(frozen=True)
class Tempered(EnergyWrapper):
    """beta E(x): inverse temperature beta, a number or a tensor that broadcasts against (B,)."""

    energy: EnergyFn
    beta: float | Tensor

    keeps = (HasShape, HasGradient, Discrete)

    @classmethod
    def example(cls) -> Self:
        """A Gaussian at temperature 2."""
        return cls(Gaussian.example(), 0.5)

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return self.beta * self.energy(x)

    @torch.no_grad()
    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        both = cast(HasGradient, self.energy).value_and_grad(x)
        if both is None:
            return None
        u, g = both
        rows = self.beta.reshape(-1, *[1] * (g.ndim - 1)) if isinstance(self.beta, Tensor) else self.beta
        return self.beta * u, (rows * g).to(g.dtype)


@dataclass(frozen=True)
class Sum(EnergyWrapper):
    """sum_i w_i E_i(x): a product of experts (Hinton 2002).

    Args:
        energies: The E_i, one or more.
        weights: The w_i, all 1 by default.
    """

    energies: Sequence[EnergyFn]
    weights: Sequence[float] | Tensor | None = None

    keeps = (HasShape, HasGradient)

    def __post_init__(self):
        if not self.energies:
            raise UserError("must be one or more", argument="energies")
        if self.weights is not None and len(self.weights) != len(self.energies):
            condition = f"must be one for each of {len(self.energies)} energies, not {len(self.weights)}"
            raise UserError(condition, argument="weights")

    @classmethod
    def example(cls) -> Self:
        """A Gaussian and a mixture."""
        return cls((Gaussian.example(), GaussianMixture.example()), (1.0, 0.3))

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return self._weighted([energy(x) for energy in self.energies])

    def _weighted(self, parts: Sequence[Tensor]) -> Tensor:
        weights = [1.0] * len(parts) if self.weights is None else self.weights
        total = weights[0] * parts[0]
        for w, part in zip(weights[1:], parts[1:], strict=True):
            total = total + w * part
        return total

    def _inner(self) -> Sequence[AnyEnergy]:
        return self.energies

    def over(self, change: Callable[[AnyEnergy], AnyEnergy]) -> Self:
        """The same over `change` of each energy."""
        return replace(self, energies=[change(energy) for energy in self.energies])

    @torch.no_grad()
    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, g = zip(*(energy_and_grad(energy, x) for energy in self.energies), strict=True)
        return self._weighted(u), self._weighted(g).to(x.dtype)


@dataclass(frozen=True)
class FixedLabels(EnergyWrapper):
    """E(x, y) at fixed labels y: (B,), or one 0-d label for every row."""

    energy: Callable[[Tensor, Tensor], Tensor]
    labels: Int[Tensor, "..."]

    keeps = (HasShape, HasGradient, Discrete)

    @classmethod
    def example(cls) -> Self:
        """Gaussians with means of 0, 1 and 2, every row of the last."""
        return cls(lambda x, y: 0.5 * (x - y[:, None]).square().sum(1), torch.tensor(2))

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return self.energy(x, self.labels.expand(len(x)))

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        return cast(HasGradient, self.energy).value_and_grad(x, self.labels.expand(len(x)))


@dataclass(frozen=True)
class Clamped(EnergyWrapper):
    """E'(x) = E(where(observed, values, x)): a function of the free pixels alone.

    The gradient at observed pixels is zero. A sampler's noise moves them, without effect on the law of the others;
    `restore` sets them to their values at the end.

    Args:
        energy: E.
        observed: Which pixels are known, bool, broadcasts to x.
        values: Their values, broadcasts to x.
    """

    energy: EnergyFn
    observed: Bool[Tensor, "..."]
    values: Float[Tensor, "..."]

    keeps = (HasShape, HasGradient)

    def __post_init__(self):
        if self.observed.dtype != torch.bool:
            condition = f"must be of type torch.bool, true where known; it is {self.observed.dtype}"
            raise UserError(condition, argument="observed")

    @classmethod
    def example(cls) -> Self:
        """A Gaussian with its first coordinate observed."""
        return cls(Gaussian.example(), torch.tensor([True, False]), torch.tensor([0.3, 0.0]))

    def restore(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """x with the observed pixels at their values."""
        return torch.where(self.observed, self.values.to(x), x)

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return self.energy(self.restore(x))

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        both = cast(HasGradient, self.energy).value_and_grad(self.restore(x))
        return None if both is None else (both[0], both[1].masked_fill(self.observed, 0))


@dataclass(frozen=True)
class AtNoise(EnergyWrapper):
    """U(x, t) at one noise variance t, a number or a 0-d tensor: the energy of data plus sqrt(t) eps."""

    energy: NoisyEnergyFn
    t: float | Tensor

    keeps = (HasShape, HasGradient)

    @classmethod
    def example(cls) -> Self:
        """Standard normal data at noise variance 0.5, up to a constant."""
        return cls(lambda y, t: 0.5 * y.flatten(1).square().sum(1) / (1 + t), 0.5)

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return self.energy(x, self._levels(x))

    def _value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        return cast(HasGradient, self.energy).value_and_grad(x, self._levels(x))

    def _levels(self, x: Tensor) -> Tensor:
        t = self.t.to(x) if isinstance(self.t, Tensor) else x.new_full((), self.t)
        return t.expand(len(x))


@dataclass(frozen=True)
class ClassifierGuidance(EnergyWrapper):
    """U(y, t) - strength log p(labels | y, t): the noisy data of given classes (Dhariwal & Nichol 2021).

    At strength 1 it is E(y, labels, t), the law of the class up to its share; above 1 samples are more typical of the
    class and less diverse. An energy E(x) is called without t.

    Args:
        energy: U(y, t) or E(x), with a classifier.
        labels: A label for each row (B,), or one 0-d for all.
        strength: The factor on the classifier's term.
    """

    energy: Classifier
    labels: Int[Tensor, "..."]
    strength: float = 1.0

    # At t_max the noisy data tell nothing of the class, so the prior is that of the data.
    keeps = (HasShape, HasGradient, HasNoiseLevels, NoiseConditional)

    @classmethod
    def example(cls) -> Self:
        """A mixture of Gaussians, whose components are the classes; every row in component 2."""
        return cls(GaussianMixture.example(), torch.tensor(2))

    def __call__(self, y: Float[Tensor, "b *d"], *t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return self.energy(y, *t) + self._surprise(y, *t)

    def _value_and_grad(self, y: Tensor, *t: Tensor) -> tuple[Tensor, Tensor] | None:
        own = cast(HasGradient, self.energy).value_and_grad(y, *t)
        if own is None:
            return None
        with torch.enable_grad():
            y = y.detach().requires_grad_(True)
            surprise = self._surprise(y, *t)
            (force,) = torch.autograd.grad(surprise.sum(), y)
        return own[0] + surprise.detach(), own[1] + force

    def _surprise(self, y: Tensor, *t: Tensor) -> Tensor:
        scores, labels = self.energy.logits(y, *t), self.labels.expand(len(y))
        return self.strength * F.cross_entropy(scores, labels, reduction="none")
