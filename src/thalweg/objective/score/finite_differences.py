"""Losses of an energy's gradient, trained without second derivatives of the energy.

Let L(s) be a loss of the slopes s = dE/da, a the coordinates of a position in units that suit it (of the noise, for
example). Its gradient in the parameters is that of <v, s> with v = dL/ds held fixed. With d = v / |v|, row by row,

    <v, dE/da> = |v| (E(a + h d) - E(a - h d)) / 2h + O(h²),

so first derivatives suffice: one gradient in the position, for the loss and v, and one backward pass in the parameters.
The value of the loss is exact, its gradient has a relative error O(h²) + O(precision / h).

After Pang, Xu, Li, Song, Ermon and Zhu (2020), who take differences along random directions. The direction here is the
residual's: the loss depends on no other, so that there is no variance of a projection (docs/decisions.md).
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.device import autocast
from thalweg.core.rng import global_state, set_global_state
from thalweg.energy.base import AnyEnergy, HasGradient
from thalweg.energy.engine.attention import double_backward
from thalweg.objective.score.derivatives import energy_and_grad_in_graph
from thalweg.sampler.base import per_row

# h is so much a coordinate, sqrt(D) as much in all, by the precision of the positions: docs/experiments/attention.md.
STEP = {torch.float64: 1e-4, torch.float32: 0.05}
SECOND_STEP = {torch.float64: 1e-3, torch.float32: 0.1}  # of second differences, which lose twice the digits

Move = Callable[..., tuple[Tensor, ...]]  # offsets of the coordinates, one or two tensors, to what the energy takes


class Evaluations:
    """An energy at several positions, each time with the same draws of its own (dropout), in one loss.

    The energy takes all positions in one call, so that what changes from call to call (the power iteration of spectral
    norms) is the same for all of them. One that draws is called for each with the global generators set back; under
    `torch.compile`, which cannot do that, it must not draw.
    """

    def __init__(self, energy: AnyEnergy):
        self.energy = energy
        self._before: list[Tensor] | None = None  # of the generators, where the energy draws

    def value_and_grads(self, inputs: Sequence[Tensor], num: int = 1) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(E (B,), its gradients in the first `num` inputs), all detached, by first derivatives."""
        if torch.compiler.is_compiling():  # which cannot trace `autograd.grad`
            energy, rest = self.energy, inputs[num:]
            u, pull = torch.func.vjp(lambda *of: energy(*of, *rest), *inputs[:num])  # pyright: ignore[reportAssignmentType]
            return u.detach(), tuple(g.detach() for g in pull(torch.ones_like(u)))
        before = global_state(inputs[0].device)
        u, grads = self._first_derivatives(inputs, num)
        moved = any(not torch.equal(a, b) for a, b in zip(before, global_state(inputs[0].device), strict=True))
        self._before = before if moved else None
        return u, grads

    def _first_derivatives(self, inputs: Sequence[Tensor], num: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        energy = call = self.energy
        if num == 1 and isinstance(energy, HasGradient) and (both := energy.value_and_grad(*inputs)) is not None:
            return both[0], (both[1],)
        with torch.enable_grad():
            of = [v.detach().requires_grad_() for v in inputs[:num]]
            u = call(*of, *inputs[num:])
            return u.detach(), torch.autograd.grad(u.sum(), of, materialize_grads=True)

    def at(self, points: Sequence[tuple[Tensor, ...]]) -> list[Float[Tensor, " b"]]:
        """The energies of each set of rows, in the graph, and outside autocast, whose rounding would be all of them."""
        with autocast(points[0][0].device, False):
            if self._before is None:
                rows = [torch.cat(kind) for kind in zip(*points, strict=True)]
                return list(self.energy(*rows).chunk(len(points)))
            found = []
            for point in points:
                set_global_state(self._before, point[0].device)
                found.append(self.energy(*point))
            return found

    def loss(
        self, move: Move, slopes: tuple[Tensor, ...], loss_of: Callable[..., Tensor]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """(loss_of(*slopes), whose gradient in the parameters is by differences, metrics).

        `difference_error` is the relative error, over the batch, of the differences as derivatives along d, which are
        known. It is small where the step suits the energy, and large where the energy has kinks.

        Args:
            move: Offsets of the coordinates to what the energy takes.
            slopes: dE/da, first derivatives, detached.
            loss_of: The loss () of such slopes.
        """
        value, pull = torch.func.vjp(loss_of, *slopes)  # pyright: ignore[reportAssignmentType]
        value = value.detach()
        if not torch.is_grad_enabled():
            return value, {}
        length, unit = polar([v.detach() for v in pull(torch.ones_like(value))])
        h = step_of(STEP, unit)
        plus, minus = self.at([move(*(sign * h * d for d in unit)) for sign in (1, -1)])
        along = (plus - minus) / (2 * h)
        surrogate = (length * along).sum()
        error = length * (along.detach() - sum(dot(d, s) for d, s in zip(unit, slopes, strict=True)))
        known = length * sum(dot(d, s) for d, s in zip(unit, slopes, strict=True))
        metrics = {"difference_error": error.norm() / known.norm()}
        return value + (surrogate - surrogate.detach()), metrics


def loss_of_gradient(
    energy: AnyEnergy,
    inputs: tuple[Tensor, ...],
    scale: float | Tensor,
    loss_of: Callable[[Tensor], Tensor],
    *,
    finite_differences: bool,
) -> tuple[Float[Tensor, ""], Tensor, Tensor, dict[str, Tensor]]:
    """(loss_of(scale · dE/dx), E, dE/dx, metrics), the loss differentiable in the parameters, E and dE/dx detached.

    Args:
        energy: Called with `inputs`.
        inputs: Positions x (B, *), then what else the energy takes.
        scale: The unit of x, a number or one that broadcasts; finite differences take their step in it.
        loss_of: The loss () of scale · dE/dx (B, *).
        finite_differences: Whether the loss is differentiated by them; else by a second derivative.
    """
    x, *more = inputs
    if not finite_differences:
        with double_backward():
            u, g = energy_and_grad_in_graph(lambda x: energy(x, *more), x)
        return loss_of(scale * g) + 0 * u.sum(), u.detach(), g.detach(), {}
    at = Evaluations(energy)
    u, (g,) = at.value_and_grads(inputs)
    loss, metrics = at.loss(lambda a: (x + scale * a, *more), (scale * g,), loss_of)
    return loss, u, g, metrics


def polar(v: Sequence[Tensor]) -> tuple[Float[Tensor, " b"], list[Tensor]]:
    """(|v| (B,), v / |v|) of the rows of tensors that make one vector together; 0 and 0 for a vector of length 0."""
    length = sum((dot(part, part) for part in v), torch.zeros_like(dot(v[0], v[0]))).sqrt()
    safe = torch.where(length > 0, length, 1)
    return length, [part / per_row(safe, part) for part in v]


def dot(a: Float[Tensor, "b *d"], b: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """The inner product of each row."""
    return (a * b).reshape(len(a), -1).sum(1)


def step_of(steps: dict[torch.dtype, float], unit: Sequence[Tensor]) -> float:
    """The length h of a step along unit vectors of D numbers a row: sqrt(D) times that of one coordinate.

    A direction is spread over all coordinates, as the noise is, so that each moves by as much whatever D is. Float32's
    serves for lower precision, as autocast is off.
    """
    num = sum(part[0].numel() for part in unit)
    return steps.get(unit[0].dtype, steps[torch.float32]) * math.sqrt(num)


def deviation(x: Float[Tensor, "b *d"]) -> Float[Tensor, ""]:
    """The deviation of all coordinates from their mean, the unit of x where no noise gives one; 1 where it is 0."""
    found = x.detach().std(correction=0)
    return torch.where(found > 0, found, 1)
