"""The likelihood ratio as an energy: an ensemble of small networks behind one preprocessing and one calibration."""

from typing import Self

import torch
from torch import Tensor, nn

from thalweg.apps.rerank import extrapolation_penalty, preprocessing
from thalweg.apps.rerank.settings import RatioSettings
from thalweg.energy.base import HasSequence
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.networks.strided import StridedEnergy

SMALLEST = 7  # pixels a side that are halved no further


class RatioEnergy(nn.Module):
    """E(x) = s mean_k E_k((view(x) - m) / d) + c + far(x), (B, *) to (B,) nats; > 0 where the generator makes too many.

    m and d standardise (a number each for images, one a column for rows); s and c calibrate; far(x), of images, is zero
    except far from all rows of both sides (`apps.rerank.extrapolation_penalty`). x is taken for a draw of the
    generator: with the view "quantile_match" its pixels are mapped to the data's quantiles first. The features are the
    networks' last hidden layers side by side, (B, F): what two rows have in common in the energy's eyes.
    """

    mean: Tensor
    deviation: Tensor
    scale: Tensor
    offset: Tensor
    limits: Tensor
    price: Tensor
    quantile_map: Tensor

    def __init__(self, *, shape: tuple[int, ...] = (1, 28, 28), settings: RatioSettings | None = None):
        super().__init__()
        s = settings or RatioSettings()
        self.shape, self.settings = tuple(shape), s
        self.ensemble = nn.ModuleList(_network(self.shape, s) for _ in range(s.ensemble))
        columns = shape if len(shape) == 1 else (1,) * len(shape)
        for name, value in (("mean", torch.zeros(columns)), ("deviation", torch.ones(columns))):
            self.register_buffer(name, value.to(torch.float32))
        self.register_buffer("scale", torch.ones((), dtype=torch.float32))
        self.register_buffer("offset", torch.zeros((), dtype=torch.float32))
        self.register_buffer("limits", extrapolation_penalty.unlimited(len(shape) == 3))
        self.register_buffer("price", torch.zeros((), dtype=torch.float32))  # nats a width
        self.register_buffer("quantile_map", preprocessing.identity(shape[0] if len(shape) == 3 else 0))

    @classmethod
    def example(cls) -> Self:
        """A small one."""
        return cls(shape=(3,), settings=RatioSettings(ensemble=2, hidden=5))

    def energy_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(E(x) (B,), features (B, F)) in one pass."""
        x = self.quantile_matched(x)
        z = self.preprocessed(x)
        outs, hidden = zip(*(head_and_hidden(network, z) for network in self.ensemble), strict=True)
        u = self.offset - self.scale * torch.stack(outs).mean(0)
        if x.ndim == 4:
            u = u + self.price * extrapolation_penalty.beyond(x, self.limits)
        return u, torch.cat(hidden, 1)

    def quantile_matched(self, x: Tensor) -> Tensor:
        """Draws of the generator with the data's quantiles, where the view is "quantile_match"."""
        return (
            preprocessing.mapped(x, self.quantile_map) if self.settings.view == "quantile_match" and x.ndim == 4 else x
        )

    def preprocessed(self, x: Tensor) -> Tensor:
        """(view(x) - m) / d, which the networks read; of data, and of draws after `quantile_matched`."""
        shown = preprocessing.binarized(x) if self.settings.view == "binarize" and x.ndim == 4 else x
        return (shown - self.mean) / self.deviation

    def standardised(self, x: Tensor) -> Tensor:
        """What the networks read of draws of the generator."""
        return self.preprocessed(self.quantile_matched(x))

    def features(self, x: Tensor) -> Tensor:
        """The networks' last hidden layers, (B, F)."""
        return self.energy_and_features(x)[1]

    def forward(self, x: Tensor) -> Tensor:
        """E(x) in nats."""
        return self.energy_and_features(x)[0]


def head_and_hidden(network: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    """(-E_k(z) (B,), the last hidden layer (B, F_k)) of one network."""
    assert isinstance(network, HasSequence)
    *body, head = network.sequence()
    for layer in body:
        z = layer(z)
    return head(z).squeeze(1), z


def _network(shape: tuple[int, ...], s: RatioSettings) -> nn.Module:
    """A small network for rows of this shape; large images get more halvings, so that its cost grows with the area."""
    if len(shape) == 1:
        return MLPEnergy(shape=shape, width=s.hidden, depth=2)  # pyright: ignore[reportArgumentType]
    channels = list(s.channels)
    while min(shape[1:]) >> len(channels) > SMALLEST:
        channels.append(channels[-1])
    return StridedEnergy(shape=shape, channels=channels, hidden=s.hidden)
