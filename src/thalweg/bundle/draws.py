"""How a bundle draws: in blocks of 100, so that sample i does not depend on how many follow."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from thalweg.bundle import classes
from thalweg.bundle.chain_length import chain_steps, start_law
from thalweg.bundle.model_units import initial_positions
from thalweg.core.rng import generator
from thalweg.energy.base import EnergyFn, HasExactDraws, NoiseConditional
from thalweg.sampler.annealed import BLOCK, anneal
from thalweg.sampler.base import require_annealed, with_num_steps
from thalweg.sampler.chain import of_block, run_chain

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle

Blocks = Iterator[Tensor]  # of samples in model units, 100 at a time


def annealed_blocks(
    bundle: "Bundle", n: int, seed: int, num_steps: int | None, labels: Tensor | None, strength: float
) -> Blocks:
    """n samples of an energy U(y, t), from its law at t_max down."""
    assert isinstance(bundle.model, NoiseConditional)  # asked for by `sample`
    sampler = require_annealed(bundle.sampler) if num_steps is None else with_num_steps(bundle.sampler, num_steps)
    given = None if labels is None else classes.of_classes(bundle.model, labels, strength)
    precision = bundle.config.get("precision", "fp32")
    return anneal(sampler, bundle.model, n, seed=seed, precision=precision, of_rows=given)


def chain_blocks(
    bundle: "Bundle", n: int, seed: int, num_steps: int | None, labels: Tensor | None, strength: float
) -> Blocks:
    """n samples of an energy E(x), by chains of their own; where it has exact draws by these, then chains if asked."""
    exact = isinstance(bundle.model, HasExactDraws) and num_steps is None
    for block, start in enumerate(range(0, n, BLOCK)):
        draws = generator(seed, "sample", block, device=bundle.device)
        size = (BLOCK, *bundle.shape)
        z = initial_positions(bundle.kind, bundle.transform, size, draws, bundle.model, start_law(bundle))[: n - start]
        if exact:
            yield z
            continue
        chain = generator(seed, "sample-chain", block).initial_seed()  # no block shares noise with another seed's
        sampler = of_block(bundle.sampler, BLOCK)
        energy: EnergyFn = bundle.model
        if labels is not None:
            energy = classes.of_classes(bundle.model, labels, strength)(start, start + len(z))
        yield run_chain(sampler, energy, z, num_steps=num_steps or chain_steps(bundle), seed=chain)
