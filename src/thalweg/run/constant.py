"""The constant of a normalised model of rows, corrected at the end of its training.

Dual score matching learns log Z(t_min) from t_max down, through every level between, and is off by some hundredths of a
nat in the plane. Importance sampling tells it to thousandths, at the price of seconds.
"""

import logging
from typing import Any

import torch
from torch import Tensor

from thalweg.bundle.bundle import Bundle
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.base import Anchored, AnyEnergy, NoiseConditional, Shiftable
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.energy.density.gaussian import SmoothedGaussian
from thalweg.energy.engine.freeze import frozen
from thalweg.normaliser.estimate import LogZ
from thalweg.normaliser.importance import importance_log_z
from thalweg.normaliser.noise_levels import noise_levels

log = logging.getLogger("thalweg")
MOST_DIMENSIONS = 64  # above, no estimate is closer than what training has learned
TRIED, DRAWS, BLOCK = 1_000, 20_000, 1_000  # how many draws: first, and where the mixture is close enough
WIDER = 2.0  # times t_min, the noise of the mixture: a law of lighter tails than the model's has rare large weights
SHARES = 0.9, 0.5  # of the draws, the mixture's: first as for a trained model, then as for one near its anchor
ENOUGH = 0.4  # effective size, as a share of the draws, at which these laws are close enough
LARGEST = 1.0  # nats, half of an interval that is of use
PATHS, LEVELS = 256, 128
COST = 0.1  # of the rows that training has seen, at most, are spent on this
MANY = 60_000  # draws, where that allows them


def correct_constant(bundle: Bundle, *, rows_seen: int) -> dict[str, Any] | None:
    """Shift the energy so that its mass at t_min is 1; the figures for config.json, None where nothing was tried.

    First by importance sampling from the bundle's mixture of factor analysers and the model's anchor. Where these are
    too far from the model, by paths over the noise levels (`normaliser.noise_levels`), if training has been long enough
    to make them cheap.
    """
    model = bundle.model
    if not isinstance(model, NoiseConditional) or not isinstance(model, Anchored) or not isinstance(model, Shiftable):
        return None
    rows = bundle.kind == "vector" and bundle.shape[0] <= MOST_DIMENSIONS
    if not rows or not bundle.normalised or bundle.mixture_prior is None:
        return None
    anchor = model.anchor
    if not isinstance(anchor, SmoothedGaussian):
        return None
    seed, how = bundle.config["run"]["seed"], "importance"
    laws = model, bundle.mixture_prior, anchor
    for share in SHARES:
        if _by_mixture(*laws, share, seed, TRIED).ess >= ENOUGH * TRIED:
            draws = MANY if COST * rows_seen >= MANY else DRAWS
            found = _by_mixture(*laws, share, seed, draws)
            break
    else:
        if COST * rows_seen < 2 * PATHS * LEVELS:
            return None
        try:
            found, how = noise_levels(model, seed=seed, num_chains=PATHS, num_steps=LEVELS), "noise levels"
        except UserError as error:
            return _unknown(bundle, error.message)
    if found.warning is not None or not found.high - found.low < 2 * LARGEST:
        return _unknown(bundle, str(found))
    model.shift(found.estimate)
    half = max(found.high - found.estimate, found.estimate - found.low)
    return {"shift": found.estimate, "within": half, "ess": found.ess, "num_chains": found.num_chains, "by": how}


def _unknown(bundle: Bundle, why: str) -> dict[str, Any]:
    """What config.json keeps where the mass could not be told, and a warning."""
    warning = f"the density's mass could not be told, so log_prob may be off ({why})"
    log.warning("%s: %s", bundle.path, warning)
    return {"warning": warning}


def _by_mixture(
    model: NoiseConditional,
    mixture: MixtureOfFactorAnalyzers,
    anchor: SmoothedGaussian,
    share: float,
    seed: int,
    n: int,
) -> LogZ:
    """From both laws, a share of the draws from the mixture: where it is narrower than the model, the anchor is not."""
    t, draws = WIDER * model.t_min, generator(seed, "constant", device=mixture.mean.device)
    counts = (mixture, round(share * n)), (anchor, n - round(share * n))
    y = torch.cat([law.draw(count, t, draws).reshape(-1, *mixture.shape).double() for law, count in counts])
    with torch.no_grad(), frozen(model):
        each = [_energies(mixture, y, t), _energies(lambda *at: anchor(*at)[0], y.flatten(1).float(), t)]
        energy = _energies(model, y.float(), model.t_min)
    weights = torch.tensor([share, 1 - share], dtype=torch.float64, device=y.device).log()
    return importance_log_z(energy, -torch.logsumexp(weights[:, None] - torch.stack(each), 0))


def _energies(energy: AnyEnergy, y: Tensor, t: float) -> Tensor:
    return torch.cat([energy(part, part.new_full((len(part),), t)).double() for part in y.split(BLOCK)])
