"""A model's energy in data units, at any noise level, and without the check of its input.

A landscape includes points outside of the data's range, pixels below 0 among them, which `Bundle.energy` refuses.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.bundle.bundle import Bundle
from thalweg.core.device import CPU
from thalweg.data.float32_check import Float32Transform
from thalweg.energy.wrappers import AtNoise

Model = Callable[..., Tensor]  # E(z), or U(z, t) with noise variances t (B,): (B, *) in model units to (B,) nats


@dataclass(frozen=True)
class DataEnergy:
    """E(x) = E_z(f(x)) - log |det df/dx| nats, for x (B, *) in data units.

    Args:
        model: E_z, or U(z, t) where `t` is given.
        transform: f, data units to model units.
        t: The noise variance, in squared model units. None: `model` takes none.
        device: Where `model` lies; x is moved there, and E back to where x is.
    """

    model: Model
    transform: Float32Transform
    t: float | None = None
    device: torch.device = CPU

    def __call__(self, x: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
        """The energy in nats."""
        z = self.transform.forward(x.to(self.device))
        t = None if self.t is None else torch.tensor(self.t, dtype=torch.float32, device=self.device)
        u = self.model(z) if t is None else AtNoise(self.model, t)(z)
        return u.to(x.device) - self.transform.log_abs_det(x)


def at_level(bundle: Bundle, model: Model, sigma: float | None = None) -> DataEnergy:
    """The energy in data units at noise deviation sigma, in model units. None: the lowest level.

    An energy without noise levels is itself, whatever sigma is.
    """
    if not bundle.noisy:
        return DataEnergy(model, bundle.transform, None, bundle.device)
    return DataEnergy(model, bundle.transform, bundle.t_min if sigma is None else sigma**2, bundle.device)


def noise_levels(bundle: Bundle, num: int, *, top: float) -> list[float]:
    """`num` noise deviations from `top` down to the lowest level, evenly on a logarithmic scale, in model units."""
    low = math.sqrt(bundle.t_min)
    return [math.exp(v) for v in torch.linspace(math.log(top), math.log(low), num).tolist()]
