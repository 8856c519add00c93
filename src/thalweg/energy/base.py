"""The contract of an energy: a callable from a batch of positions to a batch of scalars, low = likely.

p(x) = exp(-E(x)) / Z. An energy knows nothing of labels, masks, temperatures or noise levels: those are
wrappers (`thalweg.energy.compose`), so a sampler needs one contract only. A *noise-conditional* energy U(y,
t) takes the noise variance t as well; `thalweg.energy.compose.AtNoise` fixes t and gives an ordinary energy
back.

Adding an energy is one new file in this package. The contract suite (tests/contract/test_energies.py) takes
every class that is named ...Energy or offers `example()`, a small instance (the defaults serve where there is
none). `shape` says what one position looks like ((2,) where it is missing), and `noisy = True` that the
energy takes (y, t).
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core.errors import UserError


@runtime_checkable
class EnergyFn(Protocol):
    """E(x): (B, *) positions to (B,) energies in nats."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """E(x)."""
        ...


@runtime_checkable
class NoisyEnergyFn(Protocol):
    """U(y, t): (B, *) noisy positions and (B,) noise variances to (B,) energies in nats."""

    def __call__(self, y: Tensor, t: Tensor, /) -> Tensor:
        """U(y, t)."""
        ...


def energy_and_grad(energy: EnergyFn, x: Float[Tensor, "b *d"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b *d"]]:
    """(E(x), dE/dx) in one forward and one backward pass, both detached.

    The sum over the batch is differentiated, which gives each row its own gradient as long as the energy
    treats rows independently (so no BatchNorm in train mode). Under `torch.compile` the pull-back of
    `torch.func.vjp` is used, because `autograd.grad` does not trace; in eager mode `autograd.grad`, because
    it works with every module. An energy may bring a `value_and_grad(x)` of its own, which may return None where it
    does not apply; `energy.fused` does.
    """
    if torch.compiler.is_compiling():
        u, pull = torch.func.vjp(energy, x)  # pyright: ignore[reportAssignmentType]
        return u.detach(), pull(torch.ones_like(u))[0].detach()
    own = getattr(energy, "value_and_grad", None)
    if own is not None and (both := own(x)) is not None:
        return both
    try:
        return _by_autograd(energy, x)
    except RuntimeError as error:
        again = getattr(energy, "without_layout", None)
        if again is None or not again(error):
            raise
    return _by_autograd(energy, x)


def _by_autograd(energy: EnergyFn, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        u = energy(x)
        (g,) = torch.autograd.grad(u.sum(), x)
    return u.detach(), g


def marginal(f: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """-log sum_k exp f_k, the free energy of K scores; for one score it is -f."""
    return -f.squeeze(1) if f.shape[1] == 1 else -torch.logsumexp(f, dim=1)


def check_image_shape(shape: Sequence[int], num_halvings: int) -> tuple[int, int, int]:
    """(C, H, W) as a tuple; UserError where a side is under 8 pixels or would be halved away."""
    least = max(8, 2**num_halvings)
    if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < least:
        condition = f"must be (channels, height, width), {least} pixels a side or more"
        raise UserError(condition, argument="shape", value=tuple(shape))
    channels, height, width = (int(s) for s in shape)
    return channels, height, width
