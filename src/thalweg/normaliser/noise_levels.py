"""log Z at the lowest noise level of U(y, t), by importance sampling of whole paths from the highest level, and back.

With levels t_0 > … > t_K and y_k = y_{k+1} + sqrt(t_k - t_{k+1}) n, a path is drawn downwards by the Gaussian steps

    r_k(y_{k+1} | y_k) = N(y_k - (t_k - t_{k+1}) grad U(y_k, t_k), C_k),    y_0 ~ p_{t_0}, known,

whose mean is E[y_{k+1} | y_k] wherever grad U is the true score (Robbins 1956), and upwards by the noise itself, q_k.
The ratio of both laws of a path,

    log w = -U(y_K, t_K) - log p_{t_0}(y_0) + sum_k log q_k(y_k | y_{k+1}) - log r_k(y_{k+1} | y_k),

has E[w] = Z on paths drawn downwards and E[1 / w] = 1 / Z on paths upwards from exp(-U(., t_K)) / Z. No error of U
biases them: it makes the weights uneven. (Paths: Jarzynski 1997; by a learned score: Doucet et al. 2022.)
"""

import itertools
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.core.rng import generator as address
from thalweg.energy.base import NoiseConditional, energy_and_grad, require_noise_conditional
from thalweg.energy.engine.discovery import device_of
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.wrappers import AtNoise
from thalweg.normaliser.ais import effective_size
from thalweg.normaliser.bennett import sandwich
from thalweg.normaliser.estimate import LogZ, result
from thalweg.sampler.chain import transitions
from thalweg.sampler.langevin import MALA

PILOTS = 256  # paths that the steps' covariances are fitted by
ROWS_PER_DIRECTION = 4  # pilots for a covariance of all directions; one variance serves for all where there are fewer
NUM_MOVES = 50  # of MALA at the lowest level, before paths go up
STEP = 0.2  # of MALA, in units of t_K
RUN_AWAY = "must rise away from the data; it falls without bound, so that paths run away and exp(-U) has no integral"


@torch.inference_mode(False)
def noise_levels(energy: NoiseConditional, *, seed: int = 0, num_chains: int = 512, num_steps: int = 128) -> LogZ:
    """log of the integral of exp(-U(y, t_min)) over y, in nats, with an interval; 0 for a normalised energy.

    Paths upwards start from the ends of those downwards, drawn by weight and moved on by MALA, so `high` is a bound as
    far as these follow the law. Costs 2 num_chains num_steps gradients. For tens of dimensions at most: the variance
    of log w is about the sum over levels of the squared errors of the score, in units of the noise.

    Args:
        energy: U(y, t), whose law at t_max is known.
        seed: Of all draws.
        num_chains: Paths in each direction.
        num_steps: Levels between t_max and t_min, even in log t.
    """
    require_noise_conditional(energy)
    check.whole("num_chains", num_chains, 16)
    check.count(num_steps=num_steps)
    seed = check.whole("seed", seed, 0, 2**63 - 1)
    device = device_of(energy)

    def draws(name: str) -> Generator:
        return address(seed, f"noise-levels-{name}", device=device)

    with frozen(energy):
        paths = _Paths.fit(energy, num_steps, draws("pilot"))
        down, ends = paths.down(num_chains, draws("down"))
        if not bool(down.isfinite().all()):
            hint = "read the ODE's likelihood in `thalweg evaluate`, or train with more rows"
            raise UserError(RUN_AWAY, argument="energy", hint=hint)
        chosen = torch.multinomial(torch.softmax(down, 0), num_chains, replacement=True, generator=draws("choice"))
        up = paths.up(_moved(energy, ends[chosen], draws("moves")), draws("up"))
    found = sandwich(down, -up, chosen, draws("bootstrap"))
    ess = min(effective_size(down), effective_size(-up))
    return result(found, 0.0, ess, num_chains, num_steps)


class _Step(NamedTuple):
    """From level t to s: a Gaussian step of covariance V diag(variance) V'."""

    t: float
    s: float
    variance: Tensor  # (D,) float64
    axes: Tensor  # V (D, D) float64

    def noise(self, like: Tensor, generator: Generator) -> Tensor:
        """Of the step downwards, in the shape of `like`."""
        z = torch.randn(len(like), len(self.variance), generator=generator, dtype=torch.float64, device=like.device)
        return ((z * self.variance.sqrt()) @ self.axes.T).reshape(like.shape).to(like.dtype)

    def log_ratio(self, rise: Tensor, noise: Tensor) -> Float[Tensor, " b"]:
        """log q(rise) - log r(noise), float64."""
        e, z = rise.double().flatten(1), noise.double().flatten(1) @ self.axes
        up = -0.5 * e.square().sum(1) / (self.t - self.s) - 0.5 * e.shape[1] * math.log(self.t - self.s)
        return up + 0.5 * (z.square() / self.variance).sum(1) + 0.5 * self.variance.log().sum()


class _Paths(NamedTuple):
    """The levels of an energy, with their steps."""

    energy: NoiseConditional
    steps: list[_Step]

    @classmethod
    def fit(cls, energy: NoiseConditional, num_steps: int, generator: Generator) -> "_Paths":
        """Covariances (t - s) (I - (t - s) E[grad U grad U']), which E[Hess U] would give, by pilot paths.

        For p = exp(-U) the mean of the Hessian is that of grad U grad U'.
        """
        ends = (math.log(energy.t_max), math.log(energy.t_min))
        t = torch.linspace(*ends, num_steps + 1, dtype=torch.float64).exp().tolist()
        y, steps = energy.prior(PILOTS, generator), []
        for high, low in itertools.pairwise(t):
            _, g = _at(energy, y, high)
            flat = torch.nan_to_num(g.double().flatten(1), posinf=0, neginf=0)  # paths that ran away show in `down`
            fisher, axes = torch.linalg.eigh(flat.T @ flat / len(flat))
            if ROWS_PER_DIRECTION * len(fisher) > len(flat):
                fisher = fisher.mean().expand(len(fisher))
            rest = 1 - (high - low) * fisher.clamp(0, 1 / high)
            steps.append(_Step(high, low, (high - low) * rest, axes))
            y = y - (high - low) * g + steps[-1].noise(y, generator)
        return cls(energy, steps)

    def down(self, n: int, generator: Generator) -> tuple[Float[Tensor, " n"], Tensor]:
        """(log w of n paths downwards, their ends)."""
        y = self.energy.prior(n, generator)
        log_w = -self.energy.prior_log_prob(y).double()
        for step in self.steps:
            _, g = _at(self.energy, y, step.t)
            noise = step.noise(y, generator)
            rise = -(step.t - step.s) * g + noise
            log_w, y = log_w + step.log_ratio(rise, noise), y + rise
        return log_w - _at(self.energy, y, self.steps[-1].s)[0].double(), y

    def up(self, y: Tensor, generator: Generator) -> Float[Tensor, " n"]:
        """log w of paths upwards from y."""
        log_w = -_at(self.energy, y, self.steps[-1].s)[0].double()
        for step in reversed(self.steps):
            z = torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device)
            rise = math.sqrt(step.t - step.s) * z
            above = y + rise
            _, g = _at(self.energy, above, step.t)
            log_w, y = log_w + step.log_ratio(rise, (step.t - step.s) * g - rise), above
        return log_w - self.energy.prior_log_prob(y).double()


def _at(energy: NoiseConditional, y: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """(U(y, t), its gradient in y), detached."""
    return energy_and_grad(AtNoise(energy, y.new_full((), t)), y)


def _moved(energy: NoiseConditional, y: Tensor, generator: Generator) -> Tensor:
    """Positions after MALA at the lowest level."""
    lowest = AtNoise(energy, y.new_full((), energy.t_min))
    steps = transitions(MALA(step_size=STEP * energy.t_min), lowest, y, generator)
    for _ in range(NUM_MOVES):
        y = next(steps)[0].x
    return y
