"""Where the chains of a trained energy start, and how long they are: until their energies are those of held-out data.

Both are in the bundle where the training's chains began at a law that was fitted to the data. Chains that go on fall
below the data's energies. The training has seen no chains so old, so what it left there is not the data's law: samples
drift away from the data while their energies fall.
"""

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from thalweg.core.rng import generator
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.sampler.chain import run_chain

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle

NUM_CHAINS, EVERY, MOST = 100, 5, 1000  # chains that are looked at, steps between two looks, and steps at most


def start_law(bundle: "Bundle") -> MixtureOfFactorAnalyzers | None:
    """The law, in model units, from which chains start where those of the training did; None: from noise.

    A run that has not ended has none yet.
    """
    return bundle.mixture_prior if "chains" in bundle.config else None


def chain_steps(bundle: "Bundle") -> int:
    """How many steps a chain has where nobody says: as many as `chain_length` found, 1,000 from noise."""
    return MOST if start_law(bundle) is None else bundle.config["chains"]["steps"]


def chain_length(bundle: "Bundle", held_out: Float[Tensor, " n"]) -> int:
    """The most steps, a multiple of 5, after which the mean energy of chains is not below that of held-out rows.

    5 where the first look is below already, 1,000 where none is. `held_out`: the energies of the rows in data units.
    """
    begun = bundle.chains(NUM_CHAINS)
    assert begun is not None  # of an energy E(x) without exact draws, as those are that are trained by chains
    sampler, energy, x = begun
    seed, level = generator(0, "chain-length").initial_seed(), held_out.mean()
    for done in range(0, MOST, EVERY):
        x = run_chain(sampler, energy, x, num_steps=EVERY, seed=seed, start=done)
        if bundle.energy(bundle.decode(x)).mean() < level:
            return max(done, EVERY)
    return MOST
