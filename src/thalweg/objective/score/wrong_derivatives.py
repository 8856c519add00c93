"""Second derivatives that torch computes without an error, and wrongly: of functions whose backward hides its input.

An `autograd.Function` that saves plain numbers of its input (`ctx.c = x.detach().cos()`) has a right first derivative,
and a second one from which a term is missing. It is found by a central difference of the gradient,

    H d  against  (dE/dx(x + h d) - dE/dx(x - h d)) / 2h,

in float64, where no rounding hides what h = 1e-6 shows. At kinks (ReLU, max pooling) the two differ as well, but there
the difference changes with h; nothing is said of an energy unless it is the same for h and h/2.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thalweg.energy.base import AnyEnergy

STEP = 1e-6  # the chance that a unit has its kink within it is as small
SHIFT = 1e-3  # of the weights of the copy: a layer that begins at zero hides what lies behind it
SAME, WRONG = 0.05, 0.2  # relative differences: of the two steps at most, and of a wrong second derivative at least


def is_silently_wrong(energy: AnyEnergy, inputs: Sequence[Tensor], num: int = 1) -> bool:
    """Whether H d by a second backward pass differs grossly from differences of the gradient in the first `num` inputs.

    On a copy in float64 and evaluation mode; its values are read. False wherever there is doubt: where the copy or a
    call fails, where differences depend on the step, and where dE/dx is not the slope of E, as of straight-through
    gradients. The global generators move.
    """
    try:
        energy = _copied(energy)
        rows = [v.detach().double() if v.is_floating_point() else v.detach() for v in inputs]
        scales = [torch.ones_like(rows[0]), *rows[1:num]]  # a noise variance moves by a share of itself
        along = [scale * torch.randn_like(v) for scale, v in zip(scales, rows[:num], strict=True)]
        with torch.autocast(rows[0].device.type, enabled=False):
            return _disagrees(energy, rows, along)
    except Exception:  # a stranger's forward may raise anything
        return False


def _copied(energy: AnyEnergy) -> AnyEnergy:
    if not isinstance(energy, nn.Module):
        return energy
    made = copy.deepcopy(energy).double().eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p), alpha=SHIFT)
    return made


def _disagrees(energy: AnyEnergy, rows: Sequence[Tensor], along: Sequence[Tensor]) -> bool:
    num = len(along)

    def at(offset: float) -> tuple[Tensor, tuple[Tensor, ...]]:
        of = [(v + offset * d).requires_grad_() for v, d in zip(rows, along, strict=False)]
        total = energy(*of, *rows[num:]).sum()
        return total.detach(), torch.autograd.grad(total, of, materialize_grads=True)

    of = [v.clone().requires_grad_() for v in rows[:num]]
    grads = torch.autograd.grad(energy(*of, *rows[num:]).sum(), of, create_graph=True, materialize_grads=True)
    slope = torch.stack([(g * d).sum() for g, d in zip(grads, along, strict=True)]).sum()
    products = [torch.zeros_like(v) for v in of]  # where no second derivative is in the graph
    if slope.requires_grad:
        products = torch.autograd.grad(slope, of, materialize_grads=True)
    steps = []
    for h in (STEP, STEP / 2):
        (plus, up), (minus, down) = at(h), at(-h)
        own = (plus - minus) / (2 * h)
        if not bool((own - slope.detach()).abs() <= SAME * slope.detach().abs()):
            return False
        steps.append([(a - b) / (2 * h) for a, b in zip(up, down, strict=True)])
    return any(
        bool(((one - other).norm() < SAME * one.norm()) & ((one - product).norm() > WRONG * one.norm()))
        for one, other, product in zip(*steps, products, strict=True)
    )
