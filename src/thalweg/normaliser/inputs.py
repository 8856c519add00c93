"""What `log_z` is given, checked: the energy's numbers, and the type of its positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thalweg.core.errors import UserError, kind_of
from thalweg.energy.base import AnyEnergy, Bipartite, HasGradient
from thalweg.energy.engine.discovery import device_of, find_modules
from thalweg.energy.wrappers import EnergyWrapper

SUPPORTS = ("real", "box")


@dataclass
class CheckedEnergy(EnergyWrapper):
    """The energy, its result checked: one number a row that depends on x, and no NaN at the first call."""

    energy: AnyEnergy
    first: bool = True

    keeps = (Bipartite, HasGradient)

    def __call__(self, x: Tensor) -> Tensor:
        """The energy in nats."""
        u = self.energy(x)
        if not isinstance(u, Tensor) or u.shape != x.shape[:1]:
            found = f"{tuple(u.shape)}" if isinstance(u, Tensor) else kind_of(u)
            raise UserError(f"must give one number for each row, ({len(x)},), not {found}", argument="energy")
        if x.requires_grad and not u.requires_grad:
            hint = "compute it from x by torch, without detach or no_grad"
            raise UserError("must have a gradient in x", argument="energy", hint=hint)
        if self.first:
            self.first, bad = False, int(u.isnan().sum() + (u == -torch.inf).sum())
            if bad:
                text = f"must be a number where chains start; it is NaN or -inf for {bad} of {len(x)}"
                raise UserError(text, argument="energy", hint="give infinity where the law has no mass")
        return u


def type_of_positions(energy: AnyEnergy, shape: Sequence[int], states: bool) -> torch.Tensor:
    """An empty batch (0, *) of the type and on the device that the energy computes in.

    That of its first parameter or buffer of floating point; float64, or float32 where that raises, if it has none.
    """
    if not callable(energy):
        raise UserError(f"must be a module or a function of x, not {kind_of(energy)}", argument="energy")
    tensors = (t for m in find_modules(energy) for t in m.parameters(recurse=False))
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), None)
    like = torch.zeros(0, *shape, dtype=dtype or torch.float64, device=device_of(energy))
    if dtype is None and not states:
        try:
            with torch.no_grad():
                energy(torch.zeros(2, *shape, dtype=torch.float64, device=like.device))
        except RuntimeError:
            return like.float()
    return like


def rows(name: str, x: Any, like: Tensor) -> Tensor | None:
    """Positions that the caller gives, in the energy's type and place; UserError for another shape."""
    if x is None:
        return None
    if not isinstance(x, Tensor) or x.shape[1:] != like.shape[1:] or not len(x) or not bool(x.isfinite().all()):
        found = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else kind_of(x)
        shape = ", ".join(str(size) for size in like.shape[1:])
        raise UserError(f"must be finite positions (n, {shape}), not {found}", argument=name)
    return x.detach().to(like)
