"""Energies of different kinds on one scale: how rare so high an energy is among normal rows.

    v(u) = -log P(U >= u),    U the energy of a normal row that no training saw.

v is 0 for the lowest energies and log(1/alpha) at the 1 - alpha quantile, whatever the energy's units; where the sample
ends it goes on as an exponential tail would (Balkema & de Haan 1974; Pickands 1975, shape 0), so that no two anomalies
tie. The sum of several v is Fisher's statistic (1932): evidence of independent kinds adds up.
"""

from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

LEVELS = (0.99, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02)  # of survival; the tail begins at the last


class LogSurvival(NamedTuple):
    """Knots u (K,) and v (K,), joined by lines; beyond the last, v grows by 1 every `scale`, below the first by that
    of the first line, down to minus infinity, so that v has a slope everywhere.
    """

    u: Tensor
    v: Tensor
    scale: Tensor

    @classmethod
    def of(cls, energies: Float[Tensor, " n"]) -> Self:
        """From the energies of normal rows. ValueError for fewer than two, or for such as are all the same."""
        e = energies.detach().double().sort().values
        if len(e) < 2 or not bool(e[-1] > e[0]):
            raise ValueError(f"{len(e)} energies of normal rows, {len(e.unique())} of them distinct: want 2 or more")
        levels = [level for level in LEVELS if level >= 1 / len(e)]
        u = torch.quantile(e, 1 - torch.tensor(levels, dtype=e.dtype))
        step = torch.finfo(torch.float32).eps * (e[-1] - e[0])
        u = u + step * torch.arange(len(u))  # ties: knots must rise
        beyond = e[e > u[-1]] - u[-1]
        scale = beyond.mean() if len(beyond) else e[-1] - e[0]
        return cls(u.float(), -torch.tensor(levels).log(), scale.float().clamp(min=float(step)))

    def __call__(self, u: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """v(u) in nats; differentiable but at the knots."""
        i = torch.searchsorted(self.u, u.detach().contiguous()).clamp(1, len(self.u) - 1)
        low, high = self.u[i - 1], self.u[i]
        inside = self.v[i - 1] + (u - low) / (high - low) * (self.v[i] - self.v[i - 1])
        return torch.where(u > self.u[-1], self.v[-1] + (u - self.u[-1]) / self.scale, inside)
