"""Energies and features of candidates, by any energy and block by block, and checks of what it gives."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.apps.rerank.ratio_energy import RatioEnergy
from thalweg.bundle.bundle import Bundle
from thalweg.core.errors import UserError, kind_of
from thalweg.energy.engine.discovery import device_of
from thalweg.energy.engine.freeze import frozen

BLOCK = 500
PIXELS = 14  # a side, of images as features
Energy = Bundle | Callable[[Tensor], Tensor]  # (B, *) to (B,), low = good
Features = Callable[[Tensor], Tensor]  # (B, *) to (B, F)


@torch.no_grad()
def energies_and_features(
    energy: Energy, x: Tensor, features: Features | None, *, featured: bool
) -> tuple[Tensor, Tensor]:
    """Energies (N,) and, if `featured`, features (N, F), else (N, 0). UserError for what the energy must not give.

    Without `features` they are the last hidden layer of a likelihood ratio, or coarse pixels. Candidates and results
    are on the CPU; blocks go to where the energy's modules lie, which are in evaluation mode.
    """
    blocks, device = [], device_of(energy)
    with nullcontext() if isinstance(energy, Bundle) else frozen((energy, features)):
        for part in x.split(BLOCK) if len(x) else ():
            if featured and features is None and isinstance(energy, RatioEnergy):
                blocks.append(tuple(found.cpu() for found in energy.energy_and_features(part.to(device))))
            else:
                u = _numbers(_function(energy)(part.to(device)), len(part)).cpu()
                blocks.append((u, features_of(part, features) if featured else u[:, None][:, :0]))
    if not blocks:
        return torch.zeros(0), torch.zeros(0, 0)
    u, f = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return _finite(u.detach().float()), f


def features_of(x: Tensor, features: Features | None) -> Tensor:
    """What is alike among candidates, (B, F): by `features` or, without, coarse pixels and rows as they are."""
    if features is not None:
        f = features(x.to(device_of(features)))
        if not isinstance(f, Tensor) or f.ndim < 2 or len(f) != len(x):
            text = f"must give a row for each of {len(x)} candidates, ({len(x)}, F), not {_form(f)}"
            raise UserError(text, argument="features")
        f = f.flatten(1).float().cpu()
        if not bool(f.isfinite().all()):
            raise UserError("must give finite numbers", argument="features")
        return f
    if x.ndim != 4:
        return x if x.dtype == torch.float32 else (x - x.mean(0)).to(torch.float32)
    height, width = (min(PIXELS, side) for side in x.shape[2:])
    return F.adaptive_avg_pool2d(x, (height, width)).flatten(1)


def _function(energy: Energy) -> Callable[[Tensor], Tensor]:
    if isinstance(energy, Bundle):
        return energy.energy
    if not callable(energy):
        text = f"must be a bundle, a module or a callable (B, *) -> (B,), not {kind_of(energy)}"
        raise UserError(text, argument="energy")
    return energy


def _numbers(u: Tensor, n: int) -> Tensor:
    if not isinstance(u, Tensor) or u.shape != (n,):
        text = f"must give one number for each of {n} candidates, ({n},), not {_form(u)}"
        raise UserError(text, argument="energy")
    return u


def _form(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else kind_of(value)


def _finite(u: Tensor) -> Tensor:
    """Energies with infinite ones put one nat beyond the finite; UserError for NaN."""
    bad = u.isnan().nonzero().flatten()
    if len(bad):
        text = f"must not give NaN, as for {len(bad)} of {len(u)} candidates, the first at {int(bad[0])}"
        raise UserError(text, argument="energy", hint="drop them")
    finite = u[u.isfinite()]
    return u.clamp(float(finite.min()) - 1, float(finite.max()) + 1) if len(finite) else u.clamp(-1.0, 1.0)
