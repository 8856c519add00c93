"""Dual score matching: learn U(y, t) = -log p_t(y), with its constant, from its gradients in y and in t.

With y = x + sqrt(t) eps, eps ~ N(0, I) in d dimensions,

    E[ eps | y ]               = sqrt(t) grad_y U(y, t)          (denoising score matching; Vincent 2011)
    E[ (d - |eps|²) / 2 | y ]  = t dU/dt (y, t)                  (time score; Choi et al. 2022)

so both are regressions on the drawn noise, and one gradient with respect to (y, t) gives both predictions. The space
score determines U(., t) up to a constant at each t, the time score the differences of the constants, and the known law
at t_max the last one. (Guth, Kadkhodaie and Simoncelli 2025.)
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.energy.base import HasTimeGradient, NoisyEnergyFn
from thalweg.energy.engine.attention import double_backward
from thalweg.objective.base import Batch
from thalweg.objective.score.derivatives import Gradient, check_gradient, takes_differences
from thalweg.objective.score.finite_differences import Evaluations
from thalweg.objective.score.noise_levels import NoiseLevels, NoiseRange


@dataclass(frozen=True, kw_only=True)
class DualScoreMatching:
    """loss = mean_b w(t) |sqrt(t) grad_y U - eps|² / d + time_weight · mean_b (t dU/dt - (d - |eps|²)/2)² / d.

    w(t) = (t + scale²) / scale² (Karras et al. 2022). Costs about six forwards of the energy.

    Args:
        levels: The law of t.
        time_weight: Weight of the time score.
        scale: Typical deviation of a coordinate of the data, in model units; inf weighs by likelihood.
        gradient: By a second derivative, by finite differences, or what the energy allows ("auto").
    """

    levels: NoiseLevels = field(default_factory=NoiseLevels)
    time_weight: float = 1.0
    scale: float = 0.3
    gradient: Gradient = "auto"

    normalises = True
    noisy = True
    compiles = True

    def __post_init__(self):
        check.non_negative(time_weight=self.time_weight)
        check.positive(scale=self.scale)
        check_gradient(self.gradient)

    def init(self, energy: NoisyEnergyFn, x: Tensor, generator: Generator) -> NoiseRange:
        """The energy's noise levels, which do not change, and how the loss is to be differentiated."""
        state = NoiseRange.of(energy)
        differences = takes_differences(self.gradient, self, energy, (x, state.middle(x)), 2)
        return state._replace(finite_differences=differences)

    def draw(self, state: NoiseRange, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, Tensor]:
        """(t (B,), eps (B, *))."""
        x = batch.x
        t = self.levels.draw(x.shape[0], generator, state).to(x)
        return t, torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)

    def loss(
        self, energy: NoisyEnergyFn, state: NoiseRange, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Tensor, NoiseRange, dict[str, Tensor]]:
        """The loss (0-d, nats² a dimension), the unchanged state, and its two parts."""
        t, eps = noise
        t, root = t.detach(), t.detach().sqrt().reshape(-1, *([1] * (eps.ndim - 1)))
        y, d = batch.x + root * eps, eps[0].numel()
        target, weight = (d - eps.flatten(1).square().sum(1)) / 2, 1 + t / self.scale**2

        def parts(space: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
            """The squared errors (B,) of sqrt(t) dU/dy and t dU/dt."""
            return (space - eps).flatten(1).square().mean(1), (time - target).square() / d

        def loss_of(space: Tensor, time: Tensor) -> Tensor:
            of_space, of_time = parts(space, time)
            return (weight * of_space).mean() + self.time_weight * of_time.mean()

        at = Evaluations(energy) if state.finite_differences else None
        if at is None:
            with double_backward():
                u, grad_y, grad_t = value_and_grads(energy, y, t)
        else:
            u, (grad_y, grad_t) = at.value_and_grads((y, t), 2)
        slopes, metrics = (root * grad_y, t * grad_t), {}
        if at is None:  # 0·U keeps parameters without a gradient (an additive constant) in the graph, which DDP wants.
            loss = loss_of(*slopes) + 0.0 * u.sum()
        else:  # Steps are equal in the Fisher metric of N(x, t I), |dy|²/t + (d/2) (d log t)²: U is as smooth in both.
            unit = math.sqrt(d / 2)
            loss, metrics = at.loss(
                lambda a, b: (y + root * a, t * (b / unit).exp()),
                (slopes[0], slopes[1] / unit),
                lambda space, time: loss_of(space, unit * time),
            )
        of_space, of_time = (part.mean() for part in parts(*(slope.detach() for slope in slopes)))
        return loss, state, {"space": of_space, "time": of_time, **metrics}


def value_and_grads(energy: NoisyEnergyFn, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(U, dU/dy, dU/dt) at once, differentiable in the parameters: the energy's own way, or autograd's."""
    if isinstance(energy, HasTimeGradient) and (found := energy.value_and_grads(y, t)) is not None:
        return found
    if torch.compiler.is_compiling():  # which cannot trace `autograd.grad`
        u, pull = torch.func.vjp(energy, y.detach(), t.detach())  # pyright: ignore[reportAssignmentType]
        return u, *pull(torch.ones_like(u))
    with torch.enable_grad():
        y, t = y.detach().requires_grad_(True), t.detach().requires_grad_(True)
        u = energy(y, t)
        grad_y, grad_t = torch.autograd.grad(u.sum(), (y, t), create_graph=True)
    return u, grad_y, grad_t
