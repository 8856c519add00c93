"""Likelihood: what a normalised energy claims, and the probability-flow ODE that checks the claim.

For y_t = x + sqrt(t) eps with density p_t = exp(-U(., t)), points that move by dy/dt = ½ grad U(y, t) keep
p_t, and along their path d log p_t / dt = -½ ΔU(y, t). So

    log p(y, t_min) = log p(y(t_max), t_max) + ½ ∫ ΔU(y(t), t) dt        from t_min to t_max.

Only *gradients* of U enter the integral, and at t_max, where the noise drowns the data, an independent
Gaussian N(mean, C + t I) stands in for p_t. The number owes nothing to the constant that the network
learned: it is a second opinion on it. (Song et al. 2021; trace estimator: Hutchinson 1990.)
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core.rng import generator
from thalweg.energy.base import NoisyEnergyFn
from thalweg.energy.density.stationary import BLOCK, StationaryGaussian, anchor_of
from thalweg.energy.engine.attention import double_backward

EXACT_DIMENSIONS = 16
LogProb = Callable[[Tensor], Tensor]


def _grad_and_laplacian(energy: NoisyEnergyFn, y: Tensor, t: float, v: Tensor) -> tuple[Tensor, Tensor]:
    """(grad U (B, *), sum_k v_k·H v_k (B,)) at (y, t); v is (K, B, *). All K probes go through one call."""
    k, b = v.shape[:2]
    with torch.enable_grad(), double_backward():
        y = y.detach().repeat(k, *(1,) * (y.ndim - 1)).requires_grad_(True)  # (K B, *)
        u = energy(y, torch.full((k * b,), t, dtype=y.dtype, device=y.device))
        (g,) = torch.autograd.grad(u.sum(), y, create_graph=True)
        v = v.flatten(0, 1)
        if g.requires_grad:
            (hv,) = torch.autograd.grad((g * v).sum(), y, allow_unused=True, materialize_grads=True)
        else:  # an energy that is linear in y
            hv = torch.zeros_like(y)
    return g[:b].detach(), (hv * v).flatten(1).sum(1).view(k, b).sum(0).detach().double()


def _probes(y: Tensor, num_probes: int, seed: int, step: int) -> Tensor:
    """(K, B, *) probes whose sum of quadratic forms is the Laplacian: the basis if d <= 16, else scaled random signs.

    Fresh signs at each step: the estimates' errors then average out along the path.
    """
    d = y[0].numel()
    if d <= EXACT_DIMENSIONS:
        return torch.eye(d, dtype=y.dtype, device=y.device).view(d, 1, *y.shape[1:]).expand(d, *y.shape)
    g = generator(seed, "ode-probes", step, device=y.device)
    signs = torch.randint(0, 2, (num_probes, *y.shape), generator=g, device=y.device).to(y) * 2 - 1
    return signs / math.sqrt(num_probes)


def ode_log_prob(
    energy: NoisyEnergyFn,
    y: Float[Tensor, "b *d"],
    *,
    t_min: float,
    t_max: float,
    prior: LogProb,
    num_steps: int = 24,
    num_probes: int = 1,
    seed: int = 0,
) -> Float[Tensor, " b"]:
    """log p(y, t_min) in nats (float64) by the probability-flow ODE; prior(y) is log p(y, t_max), normalised.

    Classical Runge-Kutta of order four in log t: 4 num_steps Laplacians, each a double backward pass over num_probes
    copies of the batch (d copies, and exact, where d <= 16). The random trace estimate is unbiased; with H the Hessian
    and h the step in log t, its variance is about sum over steps of (h t / 2)² 2 |H - diag H|² / num_probes.
    """
    if not 0 < t_min < t_max:
        raise ValueError(f"t_min={t_min} and t_max={t_max}: want 0 < t_min < t_max")
    h = (math.log(t_max) - math.log(t_min)) / num_steps
    gain = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    y = y.detach()
    for step in range(num_steps):
        v = _probes(y, num_probes, seed, step)

        def rate(at: Tensor, s: float, v: Tensor = v) -> tuple[Tensor, Tensor]:
            t = math.exp(s)
            g, lap = _grad_and_laplacian(energy, at, t, v)
            return (0.5 * t) * g, (0.5 * t) * lap

        s = math.log(t_min) + h * step
        y1, l1 = rate(y, s)
        y2, l2 = rate(y + 0.5 * h * y1, s + 0.5 * h)
        y3, l3 = rate(y + 0.5 * h * y2, s + 0.5 * h)
        y4, l4 = rate(y + h * y3, s + h)
        y = y + (h / 6) * (y1 + 2 * y2 + 2 * y3 + y4)
        gain = gain + (h / 6) * (l1 + 2 * l2 + 2 * l3 + l4)
    return prior(y).detach().double() + gain


def gaussian_prior(x: Tensor, t: float) -> LogProb:
    """log N(y; mean, C + t I) in nats, with mean and covariance C of the rows of x: the law of x + sqrt(t)
    eps if x were Gaussian. Of images of more than 1,536 numbers C is `StationaryGaussian`'s.
    """
    if isinstance(found := anchor_of(tuple(x.shape[1:])), StationaryGaussian):
        law = found.double().fit(x.flatten(1), t=t)
        return lambda y: torch.cat(
            [
                -law(part.flatten(1).double(), part.new_full((len(part),), t, dtype=torch.float64))[0]
                for part in y.split(BLOCK)
            ]
        )
    flat = x.flatten(1).double()
    mean = flat.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(flat.T).view(flat.shape[1], -1))
    values = values.clamp(min=0) + t

    def log_prob(y: Tensor) -> Tensor:
        z = (y.flatten(1).double() - mean) @ vectors
        return -0.5 * ((z.square() / values).sum(1) + (2 * math.pi * values).log().sum())

    return log_prob


def dequantise(x: Float[Tensor, "b *d"], generator: Generator) -> Float[Tensor, "b *d"]:
    """Uniform noise inside each grey level: x in {0, 1/255, …, 1} to (255 x + u)/256 in [0, 1), u ~ U[0, 1).

    A density of the result, integrated over a level's cell of width 1/256, is a probability of the level,
    which is what makes `bits_per_dim` comparable between papers (Theis et al. 2016).
    """
    if x.dtype == torch.uint8:
        x = x.float() / 255
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
    return ((255 * x).round() + u.to(x.device)) / 256


def bits_per_dim(log_prob: Float[Tensor, " b"], d: int, levels: int = 256) -> Float[Tensor, " b"]:
    """Bits per dimension of a log-density in nats over d values in [0, 1]: (-log p / d + log levels) / log 2.

    The uniform density on [0, 1]^d scores log2(levels) = 8.
    """
    return (-log_prob / d + math.log(levels)) / math.log(2)


def compare(network: Float[Tensor, " b"], ode: Float[Tensor, " b"]) -> dict[str, float]:
    """The network's own log p beside the ODE's, nats: means, mean absolute gap, the gap over the mean
    |ODE|, correlation.
    """
    gap = (network - ode).double()
    both = torch.stack([network.double(), ode.double()])
    spread = both.std(dim=1).min() > 0 if both.shape[1] > 1 else False
    return {
        "num": float(len(gap)),
        "mean_network": network.double().mean().item(),
        "mean_ode": ode.double().mean().item(),
        "mean_gap": gap.mean().item(),
        "mean_abs_gap": gap.abs().mean().item(),
        "relative_gap": (gap.abs().mean() / ode.double().abs().mean()).item(),
        "correlation": torch.corrcoef(both)[0, 1].item() if spread else 0.0,
    }
