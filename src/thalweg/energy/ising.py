"""The Ising model on a square lattice: spins that are up or down and prefer, or avoid, to be as their neighbours."""

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.energy.enumeration import MAX_COLUMN_STATES, all_states, log_z_of_columns
from thalweg.energy.shape import check_rows, check_shape


class IsingEnergy(nn.Module):
    """E(x) = -J sum_<ij> s_i s_j - h sum_i s_i nats, s = 2 x - 1, x in {0, 1}, (B, H, W) (Ising 1925).

    The sum is over pairs of neighbours, up and down, left and right. J and h are parameters. On a periodic lattice the
    first row and column are neighbours of the last; along a side of 2 each pair then counts twice, and a side of 1 has
    no bonds.

    Args:
        shape: (H, W).
        coupling: The first J; positive: neighbours are alike. On a large lattice order sets in at 0.4407.
        field: The first h.
        periodic: Whether the lattice is a torus.
    """

    num_states = 2

    def __init__(
        self, *, shape: Sequence[int] = (4, 4), coupling: float = 0.3, field: float = 0.0, periodic: bool = True
    ):
        super().__init__()
        check.finite(coupling=coupling, field=field)
        self.shape, self.periodic = check_shape(shape, "HW"), periodic
        self.coupling = nn.Parameter(torch.tensor(float(coupling)))
        self.field = nn.Parameter(torch.tensor(float(field)))

    @classmethod
    def example(cls) -> Self:
        """3 x 4 spins in a field."""
        return cls(shape=(3, 4), coupling=0.4, field=0.2)

    def forward(self, x: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        """E(x) in nats; smooth, and defined between 0 and 1 too. Parameters are taken in x's precision."""
        check_rows(x, self.shape)
        s = 2 * x - 1
        bonds = sum(pair_sums(s, axis, self.periodic) for axis in (1, 2))
        return -(self.coupling.to(x.dtype) * bonds + self.field.to(x.dtype) * s.flatten(1).sum(1))

    def log_z(self) -> Float[Tensor, ""]:
        """log sum_x exp(-E(x)) in nats, exact, with its gradient; float64, computed on the CPU.

        By the transfer matrix along the longer side. UserError where the shorter side is over 10.
        """
        length, side = max(self.shape), min(self.shape)
        check_column(2, side)
        coupling, field = (p.to("cpu", torch.float64) for p in (self.coupling, self.field))
        s = 2 * all_states(side) - 1
        within = coupling * pair_sums(s, 1, self.periodic) + field * s.sum(1)
        return log_z_of_columns(within, coupling * s @ s.T, length, periodic=self.periodic)


def pair_sums(s: Tensor, axis: int, periodic: bool) -> Float[Tensor, " b"]:
    """The sum over neighbours along an axis of the products s_i s_j, (B,); none along a side of 1."""
    n = s.shape[axis]
    first, second = (s, s.roll(-1, axis)) if periodic else (s.narrow(axis, 0, n - 1), s.narrow(axis, 1, n - 1))
    return (first * second).flatten(1).sum(1) if n > 1 else s.new_zeros(len(s))


def check_column(num_states: int, side: int) -> None:
    """UserError where a column of a lattice has too many states for a transfer matrix."""
    if num_states**side > MAX_COLUMN_STATES:
        text = (
            f"must have a shorter side of few states for an exact sum: {num_states}^{side} are over {MAX_COLUMN_STATES}"
        )
        raise UserError(text, argument="shape", hint="estimate it by thalweg.log_z")
