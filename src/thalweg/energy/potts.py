"""The Potts model on a square lattice: each unit is in one of K states and prefers, or avoids, its neighbours' own."""

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.enumeration import all_states, log_z_of_columns
from thalweg.energy.ising import check_column, pair_sums
from thalweg.energy.shape import check_rows, check_shape


class PottsEnergy(nn.Module):
    """E(x) = -J sum_<ij> [i and j in one state] - sum_i h_k(i) nats, x one-hot over K >= 3 states (Potts 1952).

    Positions are (B, H, W, K), neighbours and periodic lattices as of `IsingEnergy`. J () and h (K,) are parameters; h
    begins at zero, and counts up to a constant.

    Args:
        shape: (H, W, K).
        coupling: The first J; positive: neighbours are alike. On a large lattice order sets in at log(1 + sqrt(K)).
        periodic: Whether the lattice is a torus.
    """

    def __init__(self, *, shape: Sequence[int] = (3, 3, 3), coupling: float = 0.5, periodic: bool = True):
        super().__init__()
        check.finite(coupling=coupling)
        self.shape, self.periodic = check_shape(shape, "HWK"), periodic
        if self.num_states < 3:
            raise UserError("must have K of 3 or more", argument="shape", value=shape, hint="take IsingEnergy for two")
        self.coupling = nn.Parameter(torch.tensor(float(coupling)))
        self.field = nn.Parameter(torch.zeros(self.num_states))

    @classmethod
    def example(cls) -> Self:
        """2 x 3 units of three states."""
        return cls(shape=(2, 3, 3), coupling=0.7)

    @property
    def num_states(self) -> int:
        """K."""
        return self.shape[2]

    def forward(self, x: Float[Tensor, "b h w k"]) -> Float[Tensor, " b"]:
        """E(x) in nats; smooth between the states too. Parameters are taken in x's precision."""
        check_rows(x, self.shape)
        bonds = sum(pair_sums(x, axis, self.periodic) for axis in (1, 2))
        return -(self.coupling.to(x.dtype) * bonds + x.sum((1, 2)) @ self.field.to(x.dtype))

    def log_z(self) -> Float[Tensor, ""]:
        """log sum_x exp(-E(x)) in nats, exact, with its gradient; float64, computed on the CPU.

        By the transfer matrix along the longer side. UserError where a shorter side has more than 2^10 states.
        """
        length, side = max(self.shape[:2]), min(self.shape[:2])
        check_column(self.num_states, side)
        coupling, field = (p.to("cpu", torch.float64) for p in (self.coupling, self.field))
        x = all_states(side, self.num_states)
        within = coupling * pair_sums(x, 1, self.periodic) + x.sum(1) @ field
        return log_z_of_columns(within, coupling * x.flatten(1) @ x.flatten(1).T, length, periodic=self.periodic)
