"""Draws from x | seen by the noise-conditional energy U(y, t): guided reverse diffusion, then exact chains.

At level t the energy's denoiser D(y) = y - t grad U is the mean of x given y, and a Gaussian with the data's own
covariance, V_t = (C^-1 + I/t)^-1, stands for its spread. Conditioning that Gaussian on what was seen,

    x^ = D(y) + V_t A' (A V_t A' + s²)^-1 (seen - A D(y)),

carries the news from the observed pixels to the missing ones at once, where replacing the observed pixels alone
(RePaint; Lugmayr et al. 2022) leaves that to the next calls of the network. Then y moves to the next level as given x^:

    y' = x^ + (t'/t) (y - x^) + sqrt(t' (1 - t'/t)) z.

(Song et al. 2023 guide with a scalar V_t and the network's Jacobian; the anchor's V_t is full and costs no second
backward pass.) The start is no pure noise but a draw of a coarse law given what was seen, at `sigma_start`, which saves
the levels above it: of the bundle's mixture (`energy.principal`), which knows of all shapes that fit, or, without one,
of the Gaussian. For a Gaussian energy all this is exact as steps grow. For any other, MALA steps at the lowest levels
follow, on `thalweg.energy.seen.Given`: exact but for noise sqrt(t) on what was seen.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.compose import AtNoise
from thalweg.energy.principal import PrincipalMixture
from thalweg.energy.seen import Directions, Given
from thalweg.sampler.annealed import denoise, karras_level
from thalweg.sampler.langevin import MALA

SLACK = 20.0  # on training digits, of 1 to 30: with less the completions are too much alike, more costs right readings
NETWORK_ROWS = 96  # evaluated together: larger batches leave the processor's cache


class Sight(NamedTuple):
    """What was seen of some rows of a batch: `rows` (r,), `read` (r, m) along `directions`, in model units."""

    rows: Int[Tensor, " r"]
    directions: Directions
    read: Float[Tensor, "r m"]


@dataclass(frozen=True, kw_only=True)
class Guided:
    """The levels: `num_steps` from `sigma_start` down to the energy's lowest, each step taken `visits` times, then
    `num_corrections` MALA steps at each of the last `corrected` levels.

    A step is repeated from where noise brings its end back to its start (Lugmayr et al. 2022), which lets the missing
    pixels settle. Costs num_steps visits + 1 + corrected (num_corrections + 1) gradients. The defaults go with a
    mixture's start, `Guided.wide()` with that of one Gaussian.
    """

    num_steps: int = 7
    visits: int = 1
    sigma_start: float = 0.6
    rho: float = 3.0
    corrected: int = 1
    num_corrections: int = 1
    step_size: float = 0.3  # of MALA, in units of t
    chain_steps: int = 500  # of an energy without noise levels, which has none of the above

    def __post_init__(self):
        if min(self.num_steps, self.visits) < 1 or min(self.num_corrections, self.corrected, self.chain_steps) < 0:
            raise ValueError(f"{self}: want num_steps and visits of 1 or more, the other counts of 0 or more")

    @classmethod
    def wide(cls) -> "Guided":
        """From a level where a Gaussian is a fair guess of the data."""
        return cls(num_steps=10, visits=3, sigma_start=1.0)

    def levels(self, energy: Any) -> list[float]:
        """Noise levels sigma, highest first."""
        low, high = energy.t_min**0.5, min(self.sigma_start, energy.t_max**0.5)
        check.increasing(sigma_min=low, sigma_start=high)
        shares = [torch.tensor(i, dtype=torch.float64) / self.num_steps for i in range(self.num_steps + 1)]
        return [float(karras_level(share, low, high, self.rho)) for share in shares]


@dataclass(frozen=True)
class Spread:
    """N(m, C) in C's eigenbasis: the Gaussian that stands for what the denoiser does not know."""

    mean: Tensor
    basis: Tensor
    spectrum: Tensor

    @classmethod
    def of(cls, energy: Any) -> "Spread":
        """The energy's own anchor; UserError where it has none."""
        if not hasattr(energy, "anchor"):
            raise UserError(f"{type(energy).__name__}: has no anchor, so no covariance of the data; give `spread`")
        return cls(energy.anchor.mean, energy.anchor.basis, energy.anchor.spectrum)

    def covariance(self, t: float | None = None) -> Float[Tensor, "d d"]:
        """(C^-1 + I/t)^-1; C itself without a t."""
        kept = self.spectrum if t is None else self.spectrum * t / (self.spectrum + t)
        return (self.basis * kept) @ self.basis.T

    def draw(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """m + C^(1/2) z."""
        return self.mean + (z * self.spectrum.sqrt()) @ self.basis.T


class Noise:
    """Standard normal rows, each from a generator of its own, so that no row depends on its neighbours."""

    def __init__(self, generators: Sequence[Generator], size: int):
        self.generators, self.size = generators, size

    def normal(self) -> Float[Tensor, "b d"]:
        """(B, D)."""
        return torch.stack([torch.randn(self.size, generator=g) for g in self.generators])

    def uniform(self) -> Float[Tensor, " b"]:
        """(B,)."""
        return torch.cat([torch.rand(1, generator=g) for g in self.generators])


@torch.no_grad()
def draw(
    energy: Any,
    sights: Sequence[Sight],
    noise: Noise,
    how: Guided,
    spread: Spread | None = None,
    guess: PrincipalMixture | None = None,
) -> Float[Tensor, "b d"]:
    """One draw of x | seen for each row, flat, in model units; every row is in one of the sights."""
    spread = spread or Spread.of(energy)
    sigma = how.levels(energy)
    if guess is None:
        prior, z = spread.draw(noise.normal()), noise.normal()
        start = _told(prior, spread.covariance(), sights, z)
    else:
        start = guessed(guess, sights, noise)
    y = start + sigma[0] * noise.normal()
    for i, (now, then) in enumerate(itertools.pairwise(sigma)):
        covariance, keep = spread.covariance(now**2), (then / now) ** 2
        for visit in range(how.visits):
            if visit:
                y = y + (now**2 - then**2) ** 0.5 * noise.normal()
            x = _told(_denoise(energy, y, now**2), covariance, sights)
            y = x + keep * (y - x) + then * (1 - keep) ** 0.5 * noise.normal()
        if i >= how.num_steps - how.corrected and how.num_corrections:
            y = _corrected(energy, y, then**2, sights, noise, how)
    x = _denoise(energy, y, sigma[-1] ** 2)
    return _told(x, spread.covariance(sigma[-1] ** 2), sights)


def guessed(guess: PrincipalMixture, sights: Sequence[Sight], noise: Noise) -> Float[Tensor, "b d"]:
    """A draw of the mixture given what was seen, for each row."""
    z, u = noise.normal(), noise.uniform()
    start = torch.empty_like(z)
    for rows, directions, read in sights:
        start[rows] = guess.draw(directions, read, z[rows, : guess.basis.shape[1]], u[rows], slack=SLACK)
    return start


def _told(guess: Tensor, covariance: Tensor, sights: Sequence[Sight], z: Tensor | None = None) -> Tensor:
    """The Gaussian guess conditioned on what was seen: its mean, or, given noise z for what was read, a draw
    (Matheron's rule: a draw of the prior is moved by the gain as the mean is).
    """
    told = guess.clone()
    for sight in sights:
        directions = sight.directions
        off = sight.read - guess[sight.rows] @ directions.basis
        if z is not None:
            off = off + directions.noise * (z[sight.rows] @ directions.basis)
        told[sight.rows] += directions.update(covariance, off)
    return told


def _denoise(energy: Any, y: Tensor, t: float) -> Tensor:
    return torch.cat([denoise(energy, part, t) for part in _parts(energy, y)]).flatten(1)


def _parts(energy: Any, y: Tensor) -> list[Tensor]:
    return [part.reshape(-1, *energy.shape) for part in y.split(NETWORK_ROWS)]


def _corrected(energy: Any, y: Tensor, t: float, sights: Sequence[Sight], noise: Noise, how: Guided) -> Tensor:
    """MALA steps on y at level t given what was seen; the same proposals whatever shares the batch."""
    z = noise.normal()
    draws = [(noise.normal(), noise.uniform()) for _ in range(how.num_corrections)]
    out = y.clone()
    for sight in sights:
        for rows in range(0, len(sight.rows), NETWORK_ROWS):
            part = slice(rows, rows + NETWORK_ROWS)
            index, read, d = sight.rows[part], sight.read[part], sight.directions
            held = _hold(y[index], t, d, read, z[index])
            given = Given(AtNoise(energy, t), t, d, read, held.reshape(-1, *energy.shape))
            kernel = MALA(step_size=how.step_size * t)
            state = kernel.init(given, held.reshape(-1, *energy.shape))
            for move, uniform in draws:
                state, _ = kernel.step(given, state, (move[index].reshape(state.x.shape), uniform[index]))
            out[index] = given.restore(state.x).flatten(1)
    return out


def _hold(y: Tensor, t: float, directions: Directions, read: Tensor, z: Tensor) -> Tensor:
    """y with each direction that is known to less than sqrt(t) set to what was read, plus the noise that is lacking."""
    lacking = (t - directions.noise.square()).clamp(min=0).sqrt()
    wanted = read + lacking * (z @ directions.basis)
    return directions.place(y, torch.where(directions.noise.square() <= t, wanted, y @ directions.basis))
