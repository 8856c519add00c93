"""Between the units of the data and those of a model: samples decoded, and where chains start."""

import torch
from torch import Generator, Tensor, nn

from thalweg.data.alphabet import END
from thalweg.data.float32_check import Float32Transform
from thalweg.data.transform import OneHot
from thalweg.energy.base import HasBaseLaw, HasExactDraws
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.energy.engine.discovery import device_of


def decoded(kind: str, transform: Float32Transform, z: Tensor) -> Tensor:
    """Model units to data units; images are clamped to [0, 1], and of texts all that follows the first end is 0."""
    x = transform.inverse(z)
    if kind == "text":
        return x * ((x == END).cumsum(-1) == 0)
    return x.clamp(0, 1) if kind == "image" else x


def initial_positions(
    kind: str,
    transform: Float32Transform,
    size: tuple[int, ...],
    draws: Generator,
    energy: object = None,
    law: MixtureOfFactorAnalyzers | None = None,
) -> Tensor:
    """Where chains of an energy without noise levels start, of a size, in model units, on the generator's device.

    Draws of `law`, where there is one, images cut to [0, 1]. Else images: pixels uniform in [0, 1]. Rows: standard
    normal in model units. Texts: the energy's exact draws where it has
    any, draws of its base law where it has one, else texts of a uniform length and of uniform letters. The energy lies
    on the generator's device.
    """
    if kind == "text":
        return _texts(transform, size, draws, energy)
    if law is not None:
        z = law.draw(size[0], 0.0, draws).to(torch.float32)
        return transform.forward(decoded(kind, transform, z)) if kind == "image" else z
    if kind == "image":
        return transform.forward(torch.rand(size, generator=draws, dtype=torch.float32, device=draws.device))
    return torch.randn(size, generator=draws, dtype=torch.float32, device=draws.device)


def _texts(transform: Float32Transform, size: tuple[int, ...], draws: Generator, energy: object) -> Tensor:
    """One-hot rows of valid texts."""
    if isinstance(energy, HasExactDraws | HasBaseLaw):
        place = device_of(energy) if isinstance(energy, nn.Module) else draws.device
        uniforms = torch.rand(size[0], energy.num_uniforms, generator=draws, device=draws.device).to(place)
        with torch.no_grad():
            found = energy.exact_draws(uniforms) if isinstance(energy, HasExactDraws) else energy.base_draws(uniforms)
        return found.to(draws.device)
    assert isinstance(transform.inner, OneHot)  # as a run of texts has been checked to have
    num_states = transform.inner.num_states
    assert num_states is not None
    letters = torch.randint(END + 1, num_states, size, generator=draws, device=draws.device)
    lengths = torch.randint(1, size[1] + 1, size[:1], generator=draws, device=draws.device)
    inside = torch.arange(size[1], device=draws.device) < lengths[:, None]
    return transform.forward((letters * inside).to(torch.float32))
