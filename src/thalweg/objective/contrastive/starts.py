"""Where chains begin: a mixture of factor analysers of the data, from which new chains are drawn.

    x = m + W z + sqrt(psi) e,    z ~ sum_k w_k N(mu_k, L_k L_k'),    e ~ N(0, I)

Uniform noise lies in the basins of a few modes, so chains from it find those alone. The mixture (Ghahramani & Hinton
1996; `energy.density.factor_mixture`) has the data's classes in their shares, but none of their detail: that is left to
the energy. It is fitted once, before training, and is part of the objective's state: a resumed run goes on with it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers

ROWS = 8192  # that the mixture is fitted to, in seconds on one core
# For a component. The fewer, the more of unseen digits is covered by chains of one energy: .59 at 150, .69 at 50, .77
# at 25. At 25 samples are nearer to training digits than unseen digits are.
EACH = 50


class StartLaw(NamedTuple):
    """The law of new chains: tensors as `MixtureOfFactorAnalyzers` has them, on the device of the chains."""

    mean: Float[Tensor, " d"]
    basis: Float[Tensor, "d r"]
    log_weights: Float[Tensor, " k"]
    means: Float[Tensor, "k r"]
    factors: Float[Tensor, "k r r"]
    psi: Float[Tensor, ""]

    def mixture(self, shape: tuple[int, ...]) -> MixtureOfFactorAnalyzers:
        """The law as an energy, for rows of a shape."""
        return MixtureOfFactorAnalyzers(shape, **self._asdict())


def fit(x: Float[Tensor, "n *d"], generator: Generator) -> StartLaw:
    """The mixture of rows x, two or more, one component for each 50 distinct ones; in the type of x.

    Rows that come twice, as of a small set in many batches, would be taken for clusters.
    """
    distinct = torch.unique(x.detach().flatten(1), dim=0).reshape(-1, *x.shape[1:])
    rows = distinct if len(distinct) > 1 else x.detach()
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    found = MixtureOfFactorAnalyzers.fit(rows, seed=seed, rows_each=EACH)
    return StartLaw(*(part.to(x) for part in _tensors(found)))


def _tensors(law: MixtureOfFactorAnalyzers) -> tuple[Tensor, ...]:
    return law.mean, law.basis, law.log_weights, law.means, law.factors, law.psi


def draw(starts: StartLaw, n: int, shape: tuple[int, ...], generator: Generator) -> Float[Tensor, "n *d"]:
    """n draws of the law, rows of a shape."""
    kind = {"generator": generator, "dtype": starts.mean.dtype, "device": starts.mean.device}
    k = torch.multinomial(starts.log_weights.exp(), n, replacement=True, generator=generator)
    z = torch.randn(n, starts.means.shape[1], 1, **kind)
    centred = starts.means[k] + (starts.factors[k] @ z).squeeze(2)
    e = torch.randn(n, len(starts.mean), **kind)
    return (starts.mean + centred @ starts.basis.T + starts.psi.sqrt() * e).reshape(n, *shape)
