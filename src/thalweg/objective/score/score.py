"""Score matching: fit the gradient of log p, in which the unknown constant does not appear.

With s(x) = -grad E(x), the Fisher divergence 1/2 E|s - grad log p|² equals, up to a constant of the data
alone, E[1/2 |grad E|² - tr Hess E] (Hyvarinen 2005). The trace costs one more backward pass a dimension; a
random probe v costs one, for E[v' H v] = tr H (Song et al. 2019). Adding noise removes the trace altogether:
the gradient of the noisy law at y = x + sigma eps is -eps / sigma on average, so a regression fits it (Vincent
2011), at one noise level or at many (Song & Ermon 2019). There are no chains, and the energy's constant stays unknown.

Every loss adds 0 · sum(E), so that a parameter that dE/dx does not depend on (a head's bias) has a gradient, zero:
`DistributedDataParallel` waits for one from every parameter.

A gradient of these losses in the parameters is a second derivative of E. An energy without one is trained by finite
differences of E (`gradient`; `thalweg.objective.score.finite_differences`).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.base import EnergyFn, NoisyEnergyFn
from thalweg.energy.engine.attention import double_backward
from thalweg.objective.base import Batch, Empty, Stateless
from thalweg.objective.score.derivatives import (
    DerivativeChoice,
    Gradient,
    check_gradient,
    grad_in_graph,
    pulled,
    takes_differences,
)
from thalweg.objective.score.finite_differences import (
    SECOND_STEP,
    Evaluations,
    deviation,
    loss_of_gradient,
    polar,
    step_of,
)
from thalweg.objective.score.noise_levels import NoiseLevels, NoiseRange
from thalweg.sampler.base import normal_like, per_row, row_norm


@dataclass(frozen=True, kw_only=True)
class DenoisingScoreMatching:
    """E |sigma · grad E(x + sigma eps) - eps|² / d: the energy of the data plus noise sigma eps (Vincent 2011).

    Its optimum is -log of the data's law convolved with N(0, sigma²), not of the data's law itself. One
    backward pass more than a regression.

    Args:
        sigma: Deviation of the noise, in the model's units.
        gradient: By a second derivative, by finite differences, or what the energy allows ("auto").
    """

    sigma: float = 0.1
    gradient: Gradient = "auto"
    normalises = False
    noisy = False
    compiles = True

    def __post_init__(self):
        check.positive(sigma=self.sigma)
        check.finite(sigma=self.sigma)
        check_gradient(self.gradient)

    def init(self, energy: EnergyFn, x: Float[Tensor, "b *d"], generator: Generator) -> DerivativeChoice:
        """How the loss is to be differentiated."""
        return DerivativeChoice(takes_differences(self.gradient, self, energy, (x,)))

    def draw(self, state: DerivativeChoice, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """(eps,): standard normal, of the batch's shape."""
        return (normal_like(batch.x, generator),)

    def loss(
        self, energy: EnergyFn, state: DerivativeChoice, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], DerivativeChoice, dict[str, Tensor]]:
        """The mean over batch and dimensions of the squared error; 1 is the loss of a flat energy."""
        (eps,) = noise
        loss, u, g, metrics = loss_of_gradient(
            energy,
            (batch.x + self.sigma * eps,),
            self.sigma,
            lambda slope: (slope - eps).square().mean(),
            finite_differences=state.finite_differences,
        )
        return loss, state, _metrics(u, g) | metrics


@dataclass(frozen=True, kw_only=True)
class MultiScaleDenoising:
    """E |sqrt(t) grad_y U(y, t) - eps|² / d, y = x + sqrt(t) eps, over many t (Song & Ermon 2019; energy form).

    The factor sqrt(t) gives all levels the same weight. U(·, t) is determined up to a function of t.

    Args:
        levels: The law of t.
        gradient: By a second derivative, by finite differences, or what the energy allows ("auto").
    """

    levels: NoiseLevels = field(default_factory=NoiseLevels)
    gradient: Gradient = "auto"
    normalises = False
    noisy = True
    compiles = True

    def __post_init__(self):
        check_gradient(self.gradient)

    def init(self, energy: NoisyEnergyFn, x: Float[Tensor, "b *d"], generator: Generator) -> NoiseRange:
        """The energy's noise levels, which do not change, and how the loss is to be differentiated."""
        state = NoiseRange.of(energy)
        differences = takes_differences(self.gradient, self, energy, (x, state.middle(x)))
        return state._replace(finite_differences=differences)

    def draw(self, state: NoiseRange, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """(eps, t): standard normal noise (B, *), noise variances (B,)."""
        return normal_like(batch.x, generator), self.levels.draw(len(batch.x), generator, state).to(batch.x)

    def loss(
        self, energy: NoisyEnergyFn, state: NoiseRange, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], NoiseRange, dict[str, Tensor]]:
        """The mean over batch and dimensions of the squared error; 1 is the loss of a flat energy."""
        eps, t = noise
        sigma = per_row(t.sqrt(), eps)
        loss, u, g, metrics = loss_of_gradient(
            energy,
            (batch.x + sigma * eps, t),
            sigma,
            lambda slope: (slope - eps).square().mean(),
            finite_differences=state.finite_differences,
        )
        return loss, state, _metrics(u, g) | metrics


@dataclass(frozen=True, kw_only=True)
class ExplicitScoreMatching(Stateless):
    """E[1/2 |grad E|² - tr Hess E], the trace exact (Hyvarinen 2005).

    One backward pass a dimension: for small d, and as the reference of the sliced form. For a Gaussian energy
    its optimum is the maximum-likelihood fit. It has no form by finite differences.
    """

    gradient: Literal["auto", "double_backward"] = "auto"

    def __post_init__(self):
        check_gradient(self.gradient)
        if self.gradient == "finite_differences":
            text, hint = "must be a second derivative for ExplicitScoreMatching", "take SlicedScoreMatching"
            raise UserError(text, argument="gradient", value=self.gradient, hint=hint)

    def draw(self, state: Empty, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """Nothing is random: the empty tuple."""
        return ()

    def loss(
        self, energy: EnergyFn, state: Empty, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], Empty, dict[str, Tensor]]:
        """The mean over the batch, in nats a squared unit; it may be negative."""
        with double_backward():
            x, u, g = grad_in_graph(energy, batch.x)
            d = x[0].numel()
            axes = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, *x.shape[1:])
            trace = torch.stack([_curvature(g, x, e.expand_as(g)) for e in axes]).sum(0)
        return _hyvarinen(g, trace) + 0 * u.sum(), state, _metrics(u, g)


@dataclass(frozen=True, kw_only=True)
class SlicedScoreMatching:
    """E[1/2 |grad E|² - v' Hess E v], v random, E[v v'] = I (Song et al. 2019, with reduced variance).

    One backward pass a projection, whatever d. By finite differences v' Hess E v is a second difference of E along v
    (Pang et al. 2020), in the loss's value too, and the step is relative to the deviation of the batch.

    Args:
        num_projections: Probes v a row.
        probe: "rademacher" (signs: the lower variance, and none for a diagonal Hessian) or "normal".
        gradient: By a third derivative, by finite differences, or what the energy allows ("auto").
    """

    num_projections: int = 1
    probe: Literal["rademacher", "normal"] = "rademacher"
    gradient: Gradient = "auto"
    normalises = False
    noisy = False

    def __post_init__(self):
        check.count(num_projections=self.num_projections)
        check.one_of(("rademacher", "normal"), probe=self.probe)
        check_gradient(self.gradient)

    def init(self, energy: EnergyFn, x: Float[Tensor, "b *d"], generator: Generator) -> DerivativeChoice:
        """How the loss is to be differentiated."""
        return DerivativeChoice(takes_differences(self.gradient, self, energy, (x,)))

    def draw(self, state: DerivativeChoice, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """(v,): probes (num_projections, B, *), independent for each row."""
        v = normal_like(batch.x.expand(self.num_projections, *batch.x.shape), generator)
        # copysign, not sign: sign(0) = 0 would be a probe of the wrong length.
        return (torch.copysign(torch.ones_like(v), v) if self.probe == "rademacher" else v,)

    def loss(
        self, energy: EnergyFn, state: DerivativeChoice, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], DerivativeChoice, dict[str, Tensor]]:
        """The mean over batch and probes, an unbiased estimate of `ExplicitScoreMatching`'s loss."""
        (probes,) = noise
        if state.finite_differences:
            return _sliced_by_differences(energy, state, batch.x, probes)
        with double_backward():
            x, u, g = grad_in_graph(energy, batch.x)
            trace = torch.stack([_curvature(g, x, v) for v in probes]).mean(0)
        return _hyvarinen(g, trace) + 0 * u.sum(), state, _metrics(u, g)


def _sliced_by_differences(
    energy: EnergyFn, state: DerivativeChoice, x: Tensor, probes: Tensor
) -> tuple[Float[Tensor, ""], DerivativeChoice, dict[str, Tensor]]:
    """The sliced loss, |grad E|² along the gradient itself, v' Hess E v by second differences along v."""
    at, scale = Evaluations(energy), deviation(x)
    u, (g,) = at.value_and_grads((x,))
    half, metrics = at.loss(
        lambda a: (x + scale * a,), (scale * g,), lambda slope: (slope / scale).flatten(1).square().sum(1).mean() / 2
    )
    traces = []
    for v in probes:
        length, (unit,) = polar([v])
        h = step_of(SECOND_STEP, [unit]) * scale
        plus, minus, middle = at.at([(x + h * unit,), (x - h * unit,), (x,)])
        traces.append(length.square() * (plus + minus - 2 * middle) / h.square())
    return half - torch.stack(traces).mean(), state, _metrics(u, g) | metrics


def _curvature(g: Float[Tensor, "b *d"], x: Float[Tensor, "b *d"], v: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """v' Hess E v of each row."""
    return (pulled(g, x, v) * v).flatten(1).sum(1)


def _hyvarinen(g: Float[Tensor, "b *d"], trace: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    return (0.5 * g.flatten(1).square().sum(1) - trace).mean()


def _metrics(u: Tensor, g: Tensor) -> dict[str, Tensor]:
    return {"energy": u.detach().mean(), "grad_norm": row_norm(g.detach()).mean()}
