"""An anchored, hence normalised, energy around any network F(y, t): `thalweg.anchored`."""

import torch
from torch import Tensor, nn

from thalweg.core.errors import UserError, kind_of
from thalweg.energy.noise_conditional.anchored import AnchoredEnergy, NetworkInputs


class AnchoredNetworkEnergy(AnchoredEnergy):
    """U(y, t), (B, *) and (B,) to (B,) nats, around a network of the user's, whatever its architecture.

    F sees the noisy position scaled to unit variance, (B, *), and the noise variance t (B,). It gives (B, *): like the
    network of a diffusion model it predicts the noise, here what the data's Gaussian gets wrong of it. A learned factor
    is zero at first, so that the energy begins as that Gaussian. F must be differentiable twice. Trained by
    `thalweg.objective.score.dual:DualScoreMatching` the energy is normalised.

    Args:
        network: F(y, t), (B, *) and (B,) to (B, *).
        shape: Shape of one position.
        sigma_min: Lowest noise deviation, in model units.
        sigma_max: Highest noise deviation, in model units; well above the data's deviation.
    """

    def __init__(
        self, *, network: nn.Module, shape: tuple[int, ...], sigma_min: float = 0.05, sigma_max: float = 10.0
    ) -> None:
        super().__init__(shape=shape, embed=1, sigma_min=sigma_min, sigma_max=sigma_max)
        self.embedding = nn.Sequential()  # the features of t as they are: the network embeds t in its own way
        self.gain = nn.Parameter(
            torch.zeros(())
        )  # the energy begins as the data's Gaussian, whatever the network's head
        self.inner, self.sigma_min, self.sigma_max = network, sigma_min, sigma_max

    @classmethod
    def example(cls) -> "AnchoredNetworkEnergy":
        """A small instance, for the contract suite."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return cls(network=_Example(), shape=(3,))

    def network(self, points: NetworkInputs, level: Tensor) -> Tensor:
        """F(y, t), (B, D); t is read from the first feature of the level, 2 log(t / t_min) / log(t_max / t_min) - 1."""
        t = self.t_min * (self.t_max / self.t_min) ** ((level[:, 0] + 1) / 2)
        y = points.scaled.reshape(-1, *self.shape)
        f = self.inner(y, t)
        if f.shape != y.shape:
            text = f"must give one number for each of its inputs, {tuple(y.shape)}; it gives {tuple(f.shape)}"
            raise UserError(text, argument="network")
        return self.gain * f.flatten(1)


def anchored(
    network: nn.Module, *, shape: tuple[int, ...], sigma_min: float = 0.05, sigma_max: float = 10.0
) -> AnchoredNetworkEnergy:
    """A normalised energy around a network F(y, t) -> (B, *): the arguments of `AnchoredNetworkEnergy`.

    bundle = thalweg.train(thalweg.anchored(MyNetwork(), shape=(2,)), x)
    bundle.log_prob(x)  # nats
    """
    if not isinstance(network, nn.Module):
        hint = "build it first" if isinstance(network, type) else "give a torch module F(y, t) -> (B, *)"
        raise UserError(f"must be a module; it is {kind_of(network)}", argument="network", hint=hint)
    return AnchoredNetworkEnergy(network=network, shape=shape, sigma_min=sigma_min, sigma_max=sigma_max)


class _Example(nn.Module):
    """A layer of (y, log t)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 3))

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([y, t.log()[:, None]], dim=1))
