"""A bundle's energies in the data's own units, at any noise level, and without the bundle's check of its input.

A landscape asks about points outside of the data's range, pixels below 0 among them, which `Bundle.energy` refuses.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.bundle.bundle import Bundle
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.wrappers import AtNoise


@dataclass(frozen=True)
class DataEnergy:
    """E(x) = E_z(f(x)) - log |det df/dx| nats, for x (B, *) in data units, f the data's transform and E_z the network's
    energy; at noise variance t, in model units, where that is given.
    """

    model: Any
    transform: Any
    t: float | None = None

    @property
    def inner(self) -> Any:
        """The energy in model units."""
        return self.model if self.t is None else AtNoise(self.model, torch.tensor(self.t, dtype=torch.float32))

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        return self.inner(self.transform.forward(x)) - self.transform.log_abs_det(x)


@contextmanager
def still(bundle: Bundle) -> Iterator[Any]:
    """The bundle's network in evaluation mode, its normalised weights folded once."""
    with frozen(bundle.model) as model:
        yield model


def at_level(bundle: Bundle, model: Any, sigma: float | None = None) -> DataEnergy:
    """The energy in data units at noise deviation sigma, in model units: the lowest level if not given.

    An energy without noise levels has one only, and knows no sigma.
    """
    if not bundle.noisy:
        return DataEnergy(model, bundle.transform)
    return DataEnergy(model, bundle.transform, bundle.t_min if sigma is None else sigma**2)


def levels(bundle: Bundle, num: int, *, top: float, bottom: float | None = None) -> list[float]:
    """`num` noise deviations from `top` down to `bottom` (the lowest level if not given), evenly on a logarithmic
    scale.
    """
    low = math.sqrt(bundle.t_min) if bottom is None else bottom
    return [math.exp(v) for v in torch.linspace(math.log(top), math.log(low), num).tolist()]
