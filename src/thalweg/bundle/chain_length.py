"""How long the chains of a trained energy are: until their energies are those of held-out data, and no longer.

Chains that go on fall below the data's energies. The training has seen no chains so old, so what it left there is not
the data's law: samples drift away from the data while their energies fall.
"""

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from thalweg.core.rng import generator
from thalweg.sampler.chain import run_chain

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle

NUM_CHAINS, EVERY, MOST = 100, 5, 1000  # chains that are looked at, steps between two looks, and steps at most


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
