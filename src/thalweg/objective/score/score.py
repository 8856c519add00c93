"""Score matching: fit the gradient of log p, in which the unknown constant does not appear.

With s(x) = -grad E(x), the Fisher divergence 1/2 E|s - grad log p|² equals, up to a constant of the data
alone, E[1/2 |grad E|² - tr Hess E] (Hyvarinen 2005). The trace costs one more backward pass a dimension; a
random probe v costs one, for E[v' H v] = tr H (Song et al. 2019). Adding noise removes the trace altogether:
the gradient of the noisy law at y = x + sigma eps is -eps / sigma on average, so a regression fits it (Vincent
2011), at one noise level or at many (Song & Ermon 2019). There are no chains, and the energy's constant stays unknown.

Every loss adds 0 · sum(E), so that a parameter that dE/dx does not depend on (a head's bias) has a gradient, zero:
`DistributedDataParallel` waits for one from every parameter.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.energy.base import EnergyFn, NoisyEnergyFn
from thalweg.objective.base import Batch, Empty, Stateless
from thalweg.objective.score.noise_levels import NoiseLevels, NoiseRange
from thalweg.sampler.base import normal_like, per_row, row_norm


@dataclass(frozen=True, kw_only=True)
class DenoisingScoreMatching(Stateless):
    """E |sigma · grad E(x + sigma eps) - eps|² / d: the energy of the data plus noise sigma eps (Vincent 2011).

    Its optimum is -log of the data's law convolved with N(0, sigma²), not of the data's law itself. One
    backward pass more than a regression. `sigma` in the model's units.
    """

    sigma: float = 0.1
    compiles = True

    def __post_init__(self):
        check.positive(sigma=self.sigma)
        check.finite(sigma=self.sigma)

    def draw(self, state: Empty, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """(eps,): standard normal, of the batch's shape."""
        return (normal_like(batch.x, generator),)

    def loss(
        self, energy: EnergyFn, state: Empty, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], Empty, dict[str, Tensor]]:
        """The mean over batch and dimensions of the squared error; 1 is the loss of a flat energy."""
        (eps,) = noise
        u, g = energy_and_grad_in_graph(energy, batch.x + self.sigma * eps)
        error = self.sigma * g - eps
        return error.square().mean() + 0 * u.sum(), state, _metrics(u, g)


@dataclass(frozen=True, kw_only=True)
class MultiScaleDenoising:
    """E |sqrt(t) grad_y U(y, t) - eps|² / d, y = x + sqrt(t) eps, over many t (Song & Ermon 2019; energy form).

    The factor sqrt(t) gives all levels the same weight. U(·, t) is determined up to a function of t.

    Args:
        levels: The law of t.
    """

    levels: NoiseLevels = field(default_factory=NoiseLevels)
    normalises = False
    noisy = True
    compiles = True

    def init(self, energy: NoisyEnergyFn, x: Float[Tensor, "b *d"], generator: Generator) -> NoiseRange:
        """The energy's noise levels, which do not change."""
        return NoiseRange.of(energy)

    def draw(self, state: NoiseRange, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """(eps, t): standard normal noise (B, *), noise variances (B,)."""
        return normal_like(batch.x, generator), self.levels.draw(len(batch.x), generator, state).to(batch.x)

    def loss(
        self, energy: NoisyEnergyFn, state: NoiseRange, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], NoiseRange, dict[str, Tensor]]:
        """The mean over batch and dimensions of the squared error; 1 is the loss of a flat energy."""
        eps, t = noise
        sigma = per_row(t.sqrt(), eps)
        u, g = energy_and_grad_in_graph(lambda y: energy(y, t), batch.x + sigma * eps)
        error = sigma * g - eps
        return error.square().mean() + 0 * u.sum(), state, _metrics(u, g)


@dataclass(frozen=True, kw_only=True)
class ExplicitScoreMatching(Stateless):
    """E[1/2 |grad E|² - tr Hess E], the trace exact (Hyvarinen 2005).

    One backward pass a dimension: for small d, and as the reference of the sliced form. For a Gaussian energy
    its optimum is the maximum-likelihood fit.
    """

    def draw(self, state: Empty, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """Nothing is random: the empty tuple."""
        return ()

    def loss(
        self, energy: EnergyFn, state: Empty, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], Empty, dict[str, Tensor]]:
        """The mean over the batch, in nats a squared unit; it may be negative."""
        x, u, g = _grad_in_graph(energy, batch.x)
        d = x[0].numel()
        axes = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, *x.shape[1:])
        trace = torch.stack([_curvature(g, x, e.expand_as(g)) for e in axes]).sum(0)
        return _hyvarinen(g, trace) + 0 * u.sum(), state, _metrics(u, g)


@dataclass(frozen=True, kw_only=True)
class SlicedScoreMatching(Stateless):
    """E[1/2 |grad E|² - v' Hess E v], v random, E[v v'] = I (Song et al. 2019, with reduced variance).

    One backward pass a projection, whatever d. `probe` is "rademacher" (signs: the lower variance, and none
    for a diagonal Hessian) or "normal".
    """

    num_projections: int = 1
    probe: Literal["rademacher", "normal"] = "rademacher"

    def __post_init__(self):
        check.count(num_projections=self.num_projections)
        check.one_of(("rademacher", "normal"), probe=self.probe)

    def draw(self, state: Empty, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """(v,): probes (num_projections, B, *), independent for each row."""
        v = normal_like(batch.x.expand(self.num_projections, *batch.x.shape), generator)
        # copysign, not sign: sign(0) = 0 would be a probe of the wrong length.
        return (torch.copysign(torch.ones_like(v), v) if self.probe == "rademacher" else v,)

    def loss(
        self, energy: EnergyFn, state: Empty, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], Empty, dict[str, Tensor]]:
        """The mean over batch and probes, an unbiased estimate of `ExplicitScoreMatching`'s loss."""
        (probes,) = noise
        x, u, g = _grad_in_graph(energy, batch.x)
        trace = torch.stack([_curvature(g, x, v) for v in probes]).mean(0)
        return _hyvarinen(g, trace) + 0 * u.sum(), state, _metrics(u, g)


def energy_and_grad_in_graph(
    energy: Callable[[Tensor], Tensor], x: Float[Tensor, "b *d"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b *d"]]:
    """(E(x), dE/dx), both in the graph, so that a loss of dE/dx has a gradient in the parameters.

    `torch.func.vjp` under `torch.compile`, which cannot trace `autograd.grad`; `autograd.grad` in eager mode.
    """
    if torch.compiler.is_compiling():
        u, pull = torch.func.vjp(energy, x)  # pyright: ignore[reportAssignmentType]
        return u, pull(torch.ones_like(u))[0]
    _, u, g = _grad_in_graph(energy, x)
    return u, g


def _grad_in_graph(energy: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x as a leaf, E(x), dE/dx), for a second derivative in x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        u = energy(x)
        return x, u, _pull(u, x, torch.ones_like(u))


def _pull(y: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """v' dy/dx in the graph; zero where y does not depend on x (the gradient of a linear energy)."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(y, x, v, create_graph=True, materialize_grads=True)[0]


def _curvature(g: Float[Tensor, "b *d"], x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """v' Hess E v of each row."""
    return (_pull(g, x, v) * v).flatten(1).sum(1)


def _hyvarinen(g: Float[Tensor, "b *d"], trace: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    return (0.5 * g.flatten(1).square().sum(1) - trace).mean()


def _metrics(u: Tensor, g: Tensor) -> dict[str, Tensor]:
    return {"energy": u.detach().mean(), "grad_norm": row_norm(g.detach()).mean()}
