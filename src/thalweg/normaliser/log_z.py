"""log Z of any energy, with an interval."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core import check
from thalweg.core.errors import UserError
from thalweg.core.rng import generator as address
from thalweg.energy.base import AnyEnergy, Discrete
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.energy.shape import check_shape
from thalweg.normaliser.estimate import LEAST_LEVELS, LogZ, estimate
from thalweg.normaliser.inputs import SUPPORTS, CheckedEnergy, rows, type_of_positions
from thalweg.normaliser.plan import make_plan
from thalweg.normaliser.real import real_annealing
from thalweg.normaliser.states import annealing_of_states
from thalweg.normaliser.tempering import BaseLaw
from thalweg.sampler.base import Sampler

LEAST_SAMPLES = 16
PILOTS = 256  # particles that levels and step sizes are fitted by


@torch.inference_mode(False)
def log_z(
    energy: AnyEnergy,
    *,
    shape: Sequence[int],
    seed: int = 0,
    support: str = "real",
    samples: Float[Tensor, "n *d"] | None = None,
    start: Float[Tensor, "n *d"] | None = None,
    base: BaseLaw | None = None,
    sampler: Sampler[Any] | None = None,
    num_chains: int = 512,
    num_steps: int | None = None,
    max_steps: int = 8192,
    tolerance: float = 0.1,
) -> LogZ:
    """log of the integral, or sum over all states, of exp(-E(x)), in nats, with an interval.

    A base law whose constant is known is fitted to chains. Other chains are annealed from it to the energy, and back,
    with weights (Neal 2001; Grosse et al. 2015); Bennett's acceptance ratio joins the two passes. The number of levels
    doubles until half the width of the interval is within `tolerance`, or `max_steps` is reached. A hard energy gives
    a wide interval and a `warning`, not an error.

    The forward pass is rarely too high, whatever the energy (Markov's inequality). The reverse pass, and so `high`, is
    a bound only if it starts from the law. With `samples` it does. Without, it starts from the forward pass's own
    particles, drawn by weight and moved on, and shares what those missed. `high` then allows for rare weights by the
    variance of log w (`bennett.unseen`). A mode that no chain has found is missing from both, without a sign.

    UserError: an energy that gives NaN or another shape, an integral that does not exist, a sampler that is not exact.

    Args:
        energy: E(x), any module or callable, (B, *) to (B,) nats. One that is `energy.base.Discrete` is summed.
        shape: Of one position.
        seed: Of all draws.
        support: "real", or "box" for x in [0, 1]. States have their own.
        samples: Exact draws of exp(-E) / Z, where there are any.
        start: Where chains begin that the base law is fitted to. If not given: `samples`; else standard normal
            positions, or uniform ones on the box or among the states.
        base: A law E_0 with `log_z` and `draw`, such as `energy.analytic.Gaussian`, for real positions.
        sampler: An exact kernel; its `step_size`, if it has one, is adapted, in coordinates where the fitted law is
            standard normal. If not given: MALA, and for states Gibbs or single units.
        num_chains: Chains of each pass.
        num_steps: Levels of a pass: this number, whatever comes of it.
        max_steps: The highest number of levels.
        tolerance: Half the width of the interval, in nats.
    """
    seed, shape = check.whole("seed", seed, 0, 2**63 - 1), check_shape(shape)
    check.whole("num_chains", num_chains, LEAST_SAMPLES)
    check.count(max_steps=max_steps, num_steps=1 if num_steps is None else num_steps)
    check.positive(tolerance=tolerance)
    check.one_of(SUPPORTS, support=support)
    if support != "real" and isinstance(energy, Discrete):
        raise UserError("must be left out for an energy of states, which is summed", argument="support", value=support)
    if base is not None and (support != "real" or isinstance(energy, Discrete)):
        raise UserError("is for real positions", argument="base", hint="leave it out")
    with FrozenEnergy.of(energy) as frozen_energy:
        like = type_of_positions(energy, shape, isinstance(energy, Discrete))
        given, begin = rows("samples", samples, like), rows("start", start, like)
        if given is not None and len(given) < LEAST_SAMPLES:
            text = (
                f"must be {LEAST_SAMPLES} draws or more, to tell how well the constant is known; there are {len(given)}"
            )
            raise UserError(text, argument="samples", hint="leave them out, or give them as start")
        checked_energy, begin = CheckedEnergy(frozen_energy), given if begin is None else begin
        fitting = {"start": begin, "sampler": sampler, "num_chains": num_chains, "seed": seed}
        if isinstance(energy, Discrete):
            annealing = annealing_of_states(checked_energy, like, num_states=energy.num_states, **fitting)
        else:
            annealing = real_annealing(checked_energy, like, box=support == "box", base=base, **fitting)
        plan = make_plan(annealing, min(num_chains, PILOTS), address(seed, "log-z-plan", device=like.device))
        return estimate(
            lambda levels: plan.path(annealing, levels),
            samples=None if given is None else annealing.coordinates(given),
            seed=seed,
            num_chains=num_chains,
            num_levels=num_steps,
            first_levels=max(LEAST_LEVELS, 2 * len(plan.betas)),
            max_levels=max_steps,
            tolerance=tolerance,
            device=like.device,
        )
