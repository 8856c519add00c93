"""Whether a model's own chains agree, for the evaluation of an energy without noise levels.

16 independent chains begin where samples do, leave out a warm-up and keep every later step. Their energies and
coordinates (for more than 16 columns and for images, projections on a few random directions) are diagnosed by
`evaluate.diagnostics`. A kernel without a Metropolis test samples another law than exp(-E): its bias is then measured
against MALA at the same step size and temperature, which begins where the chains ended.
"""

import itertools
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.base import Capability, EnergyFn
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.evaluate.diagnostics import ESS, R_HAT, Diagnosis, diagnose
from thalweg.evaluate.vectors import MAX_DIM
from thalweg.sampler.base import GradientOnly, Sampler
from thalweg.sampler.chain import transitions
from thalweg.sampler.langevin import MALA, ULA

NUM_CHAINS, WARM_UP, NUM_DRAWS = 16, 500, 1000
DIRECTIONS = 4  # random projections, of positions with many coordinates
LEAST_ACCEPTANCE = 0.1  # of MALA, to compare with it


@runtime_checkable
class HasChains(Protocol, metaclass=Capability):
    """A model that may have chains of its own. An evaluation asks, and says whether they agree."""

    def chains(self, n: int, /, *, seed: int) -> tuple[Sampler[Any], EnergyFn, Tensor] | None:
        """(sampler, E(z), n independent starts) in model units; None where samples need no such chains."""
        ...


class _Trace(NamedTuple):
    """What the kept steps of some chains were: quantities (C, N, Q), mean acceptance, and where they ended (C, *)."""

    quantities: Tensor
    acceptance: float
    x: Tensor


def chain_figures(
    sampler: Sampler[Any], energy: EnergyFn, x: Float[Tensor, "c *d"], *, seed: int = 0
) -> dict[str, Any]:
    """Figures of chains that begin at x, fit for JSON: a row a quantity, a sentence, and the bias if it is known.

    Costs `WARM_UP` + `NUM_DRAWS` steps and `NUM_DRAWS` energies; twice that for ULA. Chains may diverge or stay where
    they are: the sentence says so.
    """
    with FrozenEnergy.of(energy) as fixed:
        draws = generator(seed, "evaluate-chains", device=x.device)
        directions, names = _directions(x, seed)
        trace = _run(sampler, fixed, x, directions, draws)
        diagnoses = diagnose(trace.quantities)
        finite = trace.quantities.isfinite().all(2).all(1)
        found: dict[str, Any] = {
            "sampler": type(sampler).__name__,
            "num_chains": len(x),
            "warm_up": WARM_UP,
            "num_draws": NUM_DRAWS,
            "acceptance": trace.acceptance,
            "num_diverged": int((~finite).sum()),
            "rows": [_row(name, each) for name, each in zip(names, diagnoses, strict=True)],
            "adjusted": not (isinstance(sampler, GradientOnly) and sampler.gradient_only),
            "agree": bool(finite.all()) and all(each.agrees for each in diagnoses),
        }
        stays = (trace.quantities == trace.quantities[:, :1]).flatten(0, 1).all(0)
        found["sentence"] = _sentence(found, [name for name, stuck in zip(names, stays, strict=True) if stuck])
        if isinstance(sampler, ULA) and bool(finite.all()):
            found["bias"] = _bias(sampler, fixed, trace, diagnoses[0], directions, draws)
    return found


def _run(
    sampler: Sampler[Any], energy: EnergyFn, x: Tensor, directions: Tensor, draws: Generator, start: int = 0
) -> _Trace:
    """`WARM_UP` steps and `NUM_DRAWS` more, which are kept."""
    kept, acceptance = [], []
    steps = transitions(sampler, energy, x, draws, start)
    for state, info in itertools.islice(steps, WARM_UP, WARM_UP + NUM_DRAWS):
        x = state.x
        with torch.no_grad():
            kept.append(torch.cat([energy(x)[:, None], x.flatten(1) @ directions], 1))
        acceptance.append(info.acceptance.mean())
    mean = float(torch.stack(acceptance).nan_to_num().mean())
    return _Trace(torch.stack(kept, 1).cpu().double(), mean, x)


def _directions(x: Tensor, seed: int) -> tuple[Tensor, list[str]]:
    """(D, K) what positions are multiplied with, and the names of the energy and the K quantities."""
    d = x[0].numel()
    if x.ndim == 2 and d <= MAX_DIM:
        return torch.eye(d, dtype=x.dtype, device=x.device), ["energy", *(f"coordinate {k + 1}" for k in range(d))]
    random = torch.randn(d, DIRECTIONS, generator=generator(seed, "evaluate-directions"), dtype=x.dtype)
    unit = (random / random.norm(dim=0)).to(x.device)
    return unit, ["energy", *(f"projection {k + 1}" for k in range(DIRECTIONS))]


def _row(name: str, diagnosis: Diagnosis) -> dict[str, Any]:
    """A row of the table; None for a figure that is not finite."""
    return {
        "quantity": name,
        **{key: value if math.isfinite(value) else None for key, value in diagnosis._asdict().items()},
    }


def _sentence(found: dict[str, Any], constant: list[str]) -> str:
    """Whether the chains agree, in plain words."""
    length = f"after {found['warm_up']:,} steps that are left out and {found['num_draws']:,} that are kept"
    if found["num_diverged"]:
        return f"{found['num_diverged']} of {found['num_chains']} chains left the finite range {length}."
    if len(constant) == len(found["rows"]):
        return f"The chains do not move {length}."
    if constant:
        return f"Constant along each chain, {length}: {', '.join(constant)}."
    if found["agree"]:
        limits = f"R-hat is below {R_HAT}, and the effective sample sizes are {ESS} or more"
        return f"The chains agree {length}: for every quantity {limits}."
    r_hat = max(math.inf if row["r_hat"] is None else row["r_hat"] for row in found["rows"])
    fewest = min(min(row["ess_bulk"] or 0, row["ess_tail"] or 0) for row in found["rows"])
    return (
        f"The chains do not agree {length}: R-hat is up to {r_hat:.2f} and should be below {R_HAT}, the smallest "
        f"effective sample size is {fewest:.0f} and should be {ESS} or more. Do not trust averages over chains of this "
        "length."
    )


def _bias(
    sampler: ULA, energy: EnergyFn, trace: _Trace, of_energy: Diagnosis, directions: Tensor, draws: Generator
) -> dict[str, Any] | None:
    """What a Metropolis test makes of the same step, and the mean energy's difference; None where T may be zero."""
    try:
        temperature = 1.0 if sampler.temperature is None else sampler.temperature
        mala = MALA(step_size=sampler.step_size, temperature=temperature, clip=sampler.clip)
    except UserError:
        return None
    exact = _run(mala, energy, trace.x, directions, draws, WARM_UP + NUM_DRAWS)
    difference = float(trace.quantities[..., 0].mean() - exact.quantities[..., 0].mean())
    error = math.hypot(of_energy.mcse_mean, diagnose(exact.quantities[..., 0])[0].mcse_mean)
    known = exact.acceptance > LEAST_ACCEPTANCE and math.isfinite(difference) and math.isfinite(error)
    clamped = "" if sampler.clamp is None else " and no clamp"
    text = (
        f"{type(sampler).__name__} has no Metropolis test, so its law is biased. A test would accept "
        f"{exact.acceptance:.1%} of such steps. "
    )
    text += (
        f"Its mean energy minus that of MALA at the same step size{clamped}, begun where these chains ended, is "
        f"{difference:+.3f} ± {2 * error:.3f} nats (two standard errors)."
        if known
        else "MALA at the same step size hardly moves, so the bias cannot be measured by it."
    )
    return {
        "metropolis_acceptance": exact.acceptance,
        "mean_energy": difference if known else None,
        "mean_energy_error": error if known else None,
        "sentence": text,
    }
