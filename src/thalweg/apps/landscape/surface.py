"""Energies over a plane of the data's space: that of 2-D data, or the plane through three examples.

Three points a, b, c span the affine plane a + span(b - a, c - a). With the orthonormal basis e1 ~ b - a, e2 ~ what c -
a has beside e1 (Gram and Schmidt), coordinates (s, t) are distances in the data's own units, so a picture of equal
aspect shows the plane undistorted. The grid's lines pass through the three points, so their energies are in the table
as they are.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core import check
from thalweg.core.errors import UserError, kind_of
from thalweg.energy.engine.freeze import frozen

Energy = Callable[[Tensor], Tensor]
BLOCK = 500
MARGIN = 0.35


class Surface(NamedTuple):
    """Energies u (m, n) in nats over the grid s (n,) x t (m,) of the plane origin + s basis[0] + t basis[1].

    `corners` (3, 2) are the coordinates of a, b and c, none for a plane of 2-D data. `num_holes` counts the cells whose
    energy is not finite; they hold NaN.
    """

    s: Float[Tensor, " n"]
    t: Float[Tensor, " m"]
    u: Float[Tensor, "m n"]
    origin: Float[Tensor, "*d"]
    basis: Float[Tensor, "2 *d"]
    corners: Float[Tensor, "k 2"]

    @property
    def num_holes(self) -> int:
        """Cells without a finite energy."""
        return int(self.u.isnan().sum())


def lifted(origin: Tensor, basis: Tensor, coordinates: Tensor) -> Tensor:
    """origin + s basis[0] + t basis[1], taken in float64, of the origin's type."""
    flat = origin.flatten().double() + coordinates.double() @ basis.flatten(1).double()
    return flat.to(origin.dtype).reshape(-1, *origin.shape)


def energies(energy: Energy, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """E over blocks of rows, detached; values that are not finite come back as NaN. Modules are in evaluation mode.

    UserError where the energy does not give one number a row.
    """
    found = []
    with torch.no_grad(), frozen(energy):
        for part in x.split(BLOCK):
            u: object = energy(part)
            if not isinstance(u, Tensor) or u.shape != part.shape[:1]:
                shape = tuple(u.shape) if isinstance(u, Tensor) else kind_of(u)
                text = f"must give one number a row, ({len(part)},), not {shape}"
                raise UserError(text, argument="energy")
            found.append(u.detach())
    u = torch.cat(found)
    return torch.where(u.isfinite(), u, torch.nan)


def plane(
    energy: Energy,
    a: Float[Tensor, "*d"],
    b: Float[Tensor, "*d"],
    c: Float[Tensor, "*d"],
    *,
    size: int = 61,
    margin: float = MARGIN,
) -> Surface:
    """The energies of the plane through three examples, (m, n) nats, over the box that holds them. `size` grid lines
    along the longer side, besides those through the examples; `margin` is what lies around them, as a share of the
    longer side. `energy`: any callable (B, *) to (B,); it is asked about points outside of the data's range too. About
    size² energies. UserError for examples of different shapes, or (nearly) on one line.
    """
    _require_one_shape(a, b, c)
    three = torch.stack([torch.as_tensor(v, dtype=torch.float32) for v in (a, b, c)])
    if not bool(three.isfinite().all()):
        raise UserError("must be finite", argument="examples")
    basis, corners = _basis(three)
    low, high = corners.amin(0), corners.amax(0)
    reach = margin * float((high - low).max())
    s, t = _lines(low - reach, high + reach, check.whole("size", size, 8, 1000), corners)
    return _surface(energy, s, t, three[0], basis, corners)


def window(energy: Energy, data: Float[Tensor, "n 2"], *, size: int = 121, margin: float = 0.18) -> Surface:
    """The energies of 2-D data, (m, n) nats, over the box that holds all but the farthest 0.2 % of rows, and a margin.

    `size` grid lines along the longer side. About size² energies.
    """
    if data.ndim != 2 or data.shape[1] != 2 or len(data) < 2:
        raise UserError(f"must be rows (n, 2), n > 1, not of shape {tuple(data.shape)}", argument="data")
    low, high = (data.double().quantile(q, dim=0).to(torch.float32) for q in (0.001, 0.999))
    if not bool((high > low).all()):
        raise UserError("must differ in both columns, and one is constant", argument="data")
    reach = margin * float((high - low).max())
    s, t = _lines(low - reach, high + reach, check.whole("size", size, 8, 1000), data[:0])
    return _surface(energy, s, t, torch.zeros(2), torch.eye(2), torch.zeros(0, 2))


def _require_one_shape(*points: Tensor) -> None:
    shapes = {tuple(p.shape) for p in points}
    if len(shapes) > 1:
        raise UserError(f"must have one shape, and have {', '.join(map(str, sorted(shapes)))}", argument="examples")
    if math.prod(next(iter(shapes))) < 2:
        raise UserError("must be of two numbers or more each, to span a plane", argument="examples")


def _basis(three: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal directions (2, *) and the coordinates (3, 2) of the three points in them."""
    flat = three.flatten(1).double()
    ab, ac = flat[1] - flat[0], flat[2] - flat[0]
    length = ab.norm()
    e1 = ab / length
    across = ac - (ac @ e1) * e1
    height = across.norm()
    if not float(length) > 0 or not float(height) > 1e-4 * float(torch.maximum(length, ac.norm())):
        raise UserError("must not lie on one line, as they then span no plane", argument="examples")
    e2 = across / height
    corners = torch.stack([ab.new_zeros(2), torch.stack([length, ab.new_zeros(())]), torch.stack([ac @ e1, height])])
    return torch.stack([e1, e2]).to(three.dtype).reshape(2, *three.shape[1:]), corners.to(three.dtype)


def _lines(low: Tensor, high: Tensor, size: int, through: Tensor) -> tuple[Tensor, Tensor]:
    """Evenly spaced lines of one distance in both directions, those next to the points' own replaced by these."""
    gap = float((high - low).max()) / (size - 1)
    axes = []
    for k in range(2):
        count = max(8, round(float(high[k] - low[k]) / gap) + 1)
        axis = torch.linspace(float(low[k]), float(high[k]), count)
        for place in through[:, k].unique():
            axis = axis[(axis - place).abs() > 0.3 * gap]
        axes.append(torch.cat([axis, through[:, k]]).unique())
    return axes[0], axes[1]


def _surface(energy: Energy, s: Tensor, t: Tensor, origin: Tensor, basis: Tensor, corners: Tensor) -> Surface:
    grid = torch.stack(torch.meshgrid(s, t, indexing="xy"), dim=-1)  # (m, n, 2)
    u = energies(energy, lifted(origin, basis, grid.reshape(-1, 2))).reshape(len(t), len(s))
    if bool(u.isnan().all()):
        raise UserError("must be finite somewhere on the plane", argument="energy")
    return Surface(s, t, u.to(torch.float32), origin, basis, corners)
