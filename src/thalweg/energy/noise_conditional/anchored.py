"""A learned noise-conditional energy anchored to the data's own smoothed Gaussian.

    U(y, t) = U0(y, t) + r(t) [ c(t) <v, F(y~, w, v, t)> + b(t) ],    v = (C + t I)^-1/2 (y - m),    y~ = k(t) (y - m)

U0 is the smoothed Gaussian N(m, C + t I) (`thalweg.energy.density.gaussian`) and F a network. It sees the point scaled
to unit variance, y~, with k(t) = 1/sqrt(s² + t), the linear denoiser's estimate w, and the point whitened by the
Gaussian, v. c(t) is the linear denoiser's error, so the target of F has unit variance (Karras et al. 2022).
r(t) = 1 - t/t_max makes the correction vanish at t_max, where the smoothed data are nearly Gaussian: that fixes the
additive constant.

Guth, Kadkhodaie and Simoncelli (2025) take <y, F>, whose gradient is F plus a term that makes the field conservative:
the point times the Jacobian of F. Nearly all variance of a photograph lies in its lowest frequencies, and there that
term drowns what F says of edges. v has the same variance in every direction (docs/decisions.md).
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from thalweg.core import check
from thalweg.core.device import autocast, in_autocast
from thalweg.core.errors import UserError
from thalweg.energy.density.stationary import anchor_of
from thalweg.energy.engine.fused import keep_memory
from thalweg.energy.shape import check_rows, check_shape

NUM_FREQUENCIES = 8
NUM_FEATURES = 2 * NUM_FREQUENCIES + 1
CONSTANT_SCALE = 10.0  # nats a unit of the head of b(t): the constants to learn are tens to hundreds of nats
LARGEST_SIGMA = 1e15
FEW_ROWS = 8  # for fewer, transforming the weights takes longer than it saves


class NetworkInputs(NamedTuple):
    """What the network sees, each (B, D)."""

    scaled: Tensor  # y~
    denoised: Tensor  # w / s
    whitened: Tensor  # v


class Terms(NamedTuple):
    """The parts of U(y, t) that need no network."""

    u0: Tensor  # U0 (B,)
    points: NetworkInputs
    level: Tensor  # features of t (B, NUM_FEATURES)
    output_scale: Tensor  # r c (B,)
    level_weight: Tensor  # r (B,)

    def cotangent(self) -> Tensor:
        """dU/dF, (B, D)."""
        return (self.output_scale[:, None] * self.points.whitened).detach()


class AnchoredEnergy(nn.Module, ABC):
    """Abstract U(y, t), (B, *) and (B,) to (B,) nats; a subclass has the `network` F.

    Trained by `thalweg.objective.score.dual:DualScoreMatching` it is normalised: exp(-U(., t)) is a density at every t
    in [sigma_min², sigma_max²]. `fit` sets the anchor from the training data and comes before training. Under autocast
    only the network runs in low precision; the anchor, the inner product and the energy keep the precision of y.

    Args:
        shape: Shape of one position, D numbers in all.
        embed: Dimension of the level's embedding.
        sigma_min: Lowest noise deviation, in model units.
        sigma_max: Highest noise deviation, in model units.
    """

    def __init__(self, *, shape: tuple[int, ...], embed: int, sigma_min: float, sigma_max: float):
        super().__init__()
        check.positive(sigma_min=sigma_min)
        check.increasing(sigma_min=sigma_min, sigma_max=sigma_max)
        if sigma_max > LARGEST_SIGMA:
            condition = f"must be at most {LARGEST_SIGMA:g}, as its square is taken in float32"
            raise UserError(condition, argument="sigma_max", value=sigma_max)
        self.shape = check_shape(shape)
        self.t_min, self.t_max = sigma_min**2, sigma_max**2
        self.anchor = anchor_of(self.shape)
        self.embedding = nn.Sequential(nn.Linear(NUM_FEATURES, embed), nn.SiLU(), nn.Linear(embed, embed), nn.SiLU())
        self.constant = nn.Linear(NUM_FEATURES, 1)
        nn.init.zeros_(self.constant.weight)
        nn.init.zeros_(self.constant.bias)

    @abstractmethod
    def network(self, points: NetworkInputs, level: Tensor) -> Tensor:
        """F: the points, flat, and the level's embedding (B, embed) to (B, D)."""

    def fit(self, x: Float[Tensor, "n *d"]) -> "AnchoredEnergy":
        """Set the anchor's mean and covariance from training data in model units."""
        self.anchor.fit(x.flatten(1), t=self.t_min)
        return self

    def forward(self, y: Float[Tensor, "b *d"], t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """U(y, t) in nats."""
        check_rows(y, self.shape)
        low = in_autocast(y.device)
        with autocast(y.device, False):
            terms = self._terms(y, t)
        with autocast(y.device, low):
            f = self.network(terms.points, self.embedding(terms.level))
        with autocast(y.device, False):
            return self._energy(terms, f.to(y.dtype))

    def value_and_grads(self, y: Float[Tensor, "b *d"], t: Float[Tensor, " b"]) -> tuple[Tensor, Tensor, Tensor] | None:
        """(U (B,), dU/dy (B, *), dU/dt (B,)), differentiable in the parameters once; None where there is no short way.

        Takes half the time of autograd (`energy.engine.double_backward.passes`).
        """
        if not self.has_network_vjp(y):
            return None
        check_rows(y, self.shape)
        keep_memory()
        flat, t = y.detach().flatten(1), t.detach().requires_grad_(True)
        u0, u0_y, u0_t, denoised, denoised_t, whitened, whitened_t = self.anchor.derivatives(flat, t.detach())
        with torch.enable_grad():
            s2, output_scale = self.anchor.spectrum.mean(), self._output_scale(t)
            k, root, weight = (s2 + t.detach()).rsqrt()[:, None], s2.rsqrt(), output_scale.detach()[:, None]
            scaled, (weight_t,) = k * (flat - self.anchor.mean), torch.autograd.grad(output_scale.sum(), t)
            points = NetworkInputs(
                *(point.detach().requires_grad_(True) for point in (scaled, root * denoised, whitened))
            )
            points_t = (-0.5 * k.square() * scaled, root * denoised_t, whitened_t)
            features = self._features(t)
            levels = (self.embedding(features.detach()), self.embedding(features))  # f must not lead back to t
            f, inner_inputs, cotangents = self.network_vjp(points, levels, weight * whitened)
            own = (1 - t / self.t_max) * CONSTANT_SCALE * self.constant(features)[:, 0]
            outputs, ones = (*inner_inputs, own.sum()), torch.ones_like(t[0])
            *of_points, of_t = torch.autograd.grad(outputs, (*points, t), (*cotangents, ones), create_graph=True)
            of_points[2] = of_points[2] + weight * f
            inner = (whitened * f).sum(1)
            grad_y = u0_y + k * of_points[0] + self.anchor.pull_back(root * of_points[1], of_points[2], t.detach())
            grad_t = u0_t + of_t + weight_t * inner
            grad_t = grad_t + sum((a * b).sum(1) for a, b in zip(points_t, of_points, strict=True))
        return u0 + weight[:, 0] * inner + own, grad_y.reshape(y.shape), grad_t

    def value_and_grad(self, y: Float[Tensor, "b *d"], t: Float[Tensor, " b"]) -> tuple[Tensor, Tensor] | None:
        """(U, dU/dy), both detached; None where there is no short way, or too few rows for it to be one."""
        if len(y) < FEW_ROWS or not self.has_network_vjp(y):
            return None
        check_rows(y, self.shape)
        keep_memory()
        y = y.detach().requires_grad_(True)
        with torch.enable_grad():
            terms = self._terms(y, t.detach())
            with torch.no_grad():
                level = self.embedding(terms.level)
            f, inputs, cotangents = self.network_vjp(terms.points, (level,), terms.cotangent())
            u = self._energy(terms, f)
            (g,) = torch.autograd.grad((u.sum(), *inputs), y, (torch.ones_like(u[0]), *cotangents))
        return u.detach(), g

    def has_network_vjp(self, y: Tensor) -> bool:
        """Whether `network_vjp` can be called for positions of y's shape and type in the present autograd mode."""
        return False

    def network_vjp(
        self, points: NetworkInputs, levels: tuple[Tensor, ...], cotangent: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(f, inputs, cotangents): the network's value, and the gradient of <cotangent, f> in its inputs.

        f has no graph back to y and t; `inputs` have, and `cotangents` are the gradients in them. `levels` are the
        level's embedding without and with a graph back to t; without the second nothing is differentiated in
        parameters.
        """
        raise AssertionError("asked for only where `has_network_vjp` says yes")

    def _terms(self, y: Tensor, t: Tensor) -> Terms:
        flat = y.flatten(1)
        u0, denoised, whitened = self.anchor(flat, t)
        s2 = self.anchor.spectrum.mean()
        points = NetworkInputs((flat - self.anchor.mean) * (s2 + t).rsqrt()[:, None], denoised * s2.rsqrt(), whitened)
        return Terms(u0, points, self._features(t), self._output_scale(t), 1 - t / self.t_max)

    def _output_scale(self, t: Tensor) -> Tensor:
        """r c, the weight of <v, F>."""
        return (1 - t / self.t_max) * self.anchor.residual_scale(t)

    def _energy(self, terms: Terms, f: Tensor) -> Tensor:
        inner = (terms.points.whitened * f).sum(1)
        return (
            terms.u0
            + terms.output_scale * inner
            + terms.level_weight * CONSTANT_SCALE * self.constant(terms.level)[:, 0]
        )

    @torch.no_grad()
    def shift(self, nats: float) -> None:
        """Add to U(., t_min): in place, by r(t) / r(t_min) of it at t."""
        self.constant.bias.add_(nats / (CONSTANT_SCALE * (1 - self.t_min / self.t_max)))

    def prior(self, n: int, generator: Generator) -> Float[Tensor, "n *d"]:
        """n draws of y at t_max, from the anchor, which is the model's law there."""
        return self.anchor.draw(n, self.t_max, generator).reshape(n, *self.shape)

    def prior_log_prob(self, y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """log p(y) at t_max, in nats."""
        return -self.anchor(y.flatten(1), y.new_full((y.shape[0],), self.t_max))[0]

    def _features(self, t: Tensor) -> Tensor:
        """Fourier features of log t, scaled to [0, 1]: low frequencies only, since dU/dt is trained too."""
        log_level = (t.log() - math.log(self.t_min)) / math.log(self.t_max / self.t_min)
        phase = log_level[:, None] * (math.pi * torch.arange(1, NUM_FREQUENCIES + 1, device=t.device, dtype=t.dtype))
        return torch.cat([2 * log_level[:, None] - 1, phase.sin(), phase.cos()], dim=1)
