"""Maximum likelihood of energies whose constant can be computed: no chains, no noise."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core.errors import UserError
from thalweg.energy.base import EnergyFn, HasExactLogZ, lacking
from thalweg.objective.base import Batch, Empty, Stateless


@dataclass(frozen=True, kw_only=True)
class MaximumLikelihood(Stateless):
    """mean E(x) + log Z in nats a row, of an energy with an exact `log_z` (Fisher 1922).

    Costs one energy a row and what `log_z` costs: nothing for `AutoregressiveEnergy`, a sum over states for the small
    machines and lattices. The energy's constant cancels, and so is left as it is.
    """

    def draw(self, state: Empty, batch: Batch, generator: Generator, progress: float) -> tuple[Tensor, ...]:
        """Nothing: the loss is exact."""
        return ()

    def loss(
        self, energy: EnergyFn, state: Empty, batch: Batch, noise: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, ""], Empty, dict[str, Tensor]]:
        """The mean over the rows; UserError for an energy without `log_z`."""
        if not isinstance(energy, HasExactLogZ):
            text = f"must have an exact log_z; {lacking(energy, HasExactLogZ)}"
            raise UserError(text, argument="energy", hint="take NoiseContrastive or PseudoLikelihood for any other")
        u = energy(batch.x).mean()
        log_z = energy.log_z().to(u)
        loss = u + log_z
        return loss, state, {"energy": u.detach(), "log_z": log_z.detach(), "surprise": loss.detach()}
