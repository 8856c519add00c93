"""The constant of a bundle whose training leaves it unknown: estimated once, then kept in its config.

The law of such a model is that of its chains, exp(-E(z) / T) in model units z, with T the temperature of its sampler, a
schedule's last; 1 where it has none. So log p(x) = -E(x) / T - log Z, where Z is the integral of exp(-E(x) / T) over x
in data units. It runs over the box that the sampler clamps to, over [0, 1] for other images, over all of space for
rows, and is a sum over states. A clamp puts probability on the walls of the box, and Langevin steps without a
Metropolis test are off by their size: log p is the density that the energy states, not the law of such a chain to the
last digit.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.core.check import one_of
from thalweg.core.errors import DamagedFile, NotNormalised, UserError
from thalweg.energy.base import Anchored, Discrete, EnergyFn, NoiseConditional
from thalweg.energy.outcomes import Conditional
from thalweg.energy.wrappers import Tempered
from thalweg.normaliser.counted import counted
from thalweg.normaliser.estimate import LogProb, LogZ
from thalweg.normaliser.inputs import SUPPORTS
from thalweg.normaliser.log_z import log_z
from thalweg.normaliser.noise_levels import noise_levels
from thalweg.sampler.base import HasChainTemperature, HasClamp
from thalweg.sampler.schedule import PROBED, value_at

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle

# A network of images is slow: fewer chains than `log_z` takes, and an end. Their intervals are wide.
OF_IMAGES = {"num_chains": 64, "max_steps": 1024}
NUM_STARTS = 64  # samples of the bundle that its chains begin at
OF_NOISE_LEVELS = ("num_chains", "num_steps")  # options of `noise_levels`
ROUNDING = 1e-5  # of the box's width: a pixel on a wall is inside


def estimated(bundle: "Bundle", *, seed: int, support: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """What a config keeps as `log_z`: the figures, the temperature and the support."""
    if isinstance(bundle.model, Conditional):
        text, hint = "must be a law of whole rows, and this one is p(y | x)", "use apps.conditional.model"
        raise UserError(text, argument=str(bundle.path), hint=hint)
    if isinstance(bundle.model, NoiseConditional):
        beyond = sorted(options.keys() - set(OF_NOISE_LEVELS) | ({"support"} if support is not None else set()))
        if beyond:
            text = f"must be left out: an energy with noise levels takes {' and '.join(OF_NOISE_LEVELS)} alone"
            raise UserError(text, argument=", ".join(beyond))
        found, temperature, support = noise_levels(bundle.model, seed=seed, **options), 1.0, "real"
    else:
        temperature = _temperature(bundle.sampler)
        support = _support(bundle) if support is None else support
        one_of((*SUPPORTS, "states"), support=support)
        found = _at_temperature(bundle, temperature, support, seed, options)
    figures = {name: _finite(value) for name, value in found._asdict().items()}
    return {**figures, "temperature": temperature, "support": support}


def stored(config: dict[str, Any]) -> tuple[LogZ, float] | None:
    """(log Z, temperature) of a config, None where it was not estimated; DamagedFile for another form."""
    found = config.get("log_z")
    if found is None:
        return None
    try:
        figures = {name: found[name] for name in LogZ._fields}
        numbers = {name: _number(name, value) for name, value in figures.items() if name != "warning"}
        temperature = float(found["temperature"])
        if not math.isfinite(numbers["estimate"]) or not temperature > 0:
            raise ValueError
    except (TypeError, KeyError, ValueError) as error:
        text = "must be what bundle.log_z() wrote, figures and a temperature"
        raise DamagedFile(text, argument="config.json: log_z", hint="estimate it again") from error
    return LogZ(**numbers, warning=figures["warning"]), temperature


def log_prob(bundle: "Bundle", x: Tensor, u: Tensor) -> LogProb | None:
    """log p of rows x (B, *) with energies u (B,), in data units, by the constant that is kept; None without one.

    -inf outside the box, where the constant is an integral over one.
    """
    if (found := stored(bundle.config)) is None:
        return None
    constant, temperature = found
    log_p = -u / temperature
    if bundle.config["log_z"].get("support") == "box":
        (low, high), z = _walls(bundle), bundle.encode(x.detach().to(bundle.device))
        slack = ROUNDING * (high - low)
        inside = ((z >= low - slack) & (z <= high + slack)).flatten(1).all(1)
        log_p = log_p.masked_fill(~inside.to(u.device), -math.inf)
    return LogProb(log_p - constant.estimate, log_p - constant.high, log_p - constant.low)


def _at_temperature(bundle: "Bundle", temperature: float, support: str, seed: int, options: dict[str, Any]) -> LogZ:
    energy: EnergyFn = bundle.model if temperature == 1 else Tempered(bundle.model, 1 / temperature)
    options = {**(OF_IMAGES if bundle.kind == "image" and support == "box" else {}), **options}
    if support == "states":
        found = counted(energy)
        return log_z(energy, shape=bundle.energy_shape, seed=seed, **options) if found is None else found
    density = _log_density(bundle)
    if temperature != 1 and bool((density - density[0]).abs().max() > 1e-4):
        text = "must have the same density at each row where the temperature is not 1"
        raise UserError(text, argument="transform", hint="take an affine one")
    # exp(-(E(z) - c) / T) dx = exp(-E(z) / T) exp(c / T - c) dz, c the transform's log density.
    shift = float(density[0]) * (1 / temperature - 1)
    if support == "real":
        return _shifted(log_z(energy, shape=bundle.energy_shape, seed=seed, **options), shift)
    low, high = _walls(bundle)
    start = options.pop("start", None)
    if start is None and bundle.kind == "image":
        start = (bundle.encode(bundle.sample(NUM_STARTS, seed=seed)) - low) / (high - low)
    inside = energy if bool((low == 0).all() & (high == 1).all()) else lambda u: energy(low + u * (high - low))
    found = log_z(inside, shape=bundle.shape, seed=seed, support="box", start=start, **options)
    return _shifted(found, shift + float((high - low).double().log().sum()))


def _temperature(sampler: object) -> float:
    given = sampler.temperature if isinstance(sampler, HasChainTemperature) else None
    temperature = 1.0 if given is None else float(value_at(given, torch.tensor(PROBED[-1])))
    if not 0 < temperature < math.inf:
        text, hint = "must be positive: at temperature 0 a chain has no law", "give another sampler"
        raise UserError(text, argument="sampler.temperature", value=temperature, hint=hint)
    return temperature


def not_normalised(bundle: "Bundle") -> NotNormalised:
    """The error of a log p whose constant is not known, with what can be done."""
    objective = bundle.config["run"]["objective"]["type"].split(":")[1]
    text = f"must be a normalised model: {objective} leaves the energy's constant unknown"
    hint = "estimate it by bundle.log_z() or `thalweg evaluate --log-z`, or use .energy(x)"
    if isinstance(bundle.model, NoiseConditional) and not isinstance(bundle.model, Anchored):
        text = "must be a normalised model, and this network's law at the highest noise level is not known"
        hint = "use .energy(x), or train thalweg.anchored(network, shape=…) by dual score matching"
    return NotNormalised(text, argument=str(bundle.path), hint=hint)


def _support(bundle: "Bundle") -> str:
    if isinstance(bundle.model, Discrete):
        return "states"
    clamped = isinstance(bundle.sampler, HasClamp) and bundle.sampler.clamp is not None
    return "box" if clamped or bundle.kind == "image" else "real"


def _walls(bundle: "Bundle") -> tuple[Tensor, Tensor]:
    """The corners (*shape) of the box in model units: the sampler's clamp, else those of [0, 1] in data units."""
    x = torch.zeros(1, *bundle.shape, dtype=bundle.dtype, device=bundle.device)
    z = bundle.encode(x)
    if isinstance(bundle.sampler, HasClamp) and bundle.sampler.clamp is not None:
        low, high = bundle.sampler.clamp
        return torch.full_like(z[0], low), torch.full_like(z[0], high)
    corners = torch.stack([z[0], bundle.encode(x + 1)[0]])
    return corners.amin(0), corners.amax(0)


def _log_density(bundle: "Bundle") -> Tensor:
    """log |dz/dx| at a few rows."""
    rows = torch.linspace(0, 1, 5, dtype=bundle.dtype, device=bundle.device)
    x = rows.reshape(-1, *[1] * len(bundle.shape)).expand(-1, *bundle.shape)
    return bundle.transform.log_abs_det(x).double()


def _shifted(found: LogZ, shift: float) -> LogZ:
    names = ("estimate", "low", "high", "forward", "reverse")
    return found._replace(**{name: getattr(found, name) + shift for name in names})


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(name: str, value: Any) -> Any:
    """A figure as it was before JSON, which holds no infinity."""
    if value is None:
        return {"low": -math.inf, "high": math.inf, "ess": math.inf}.get(name, math.nan)
    return int(value) if name in ("num_chains", "num_steps") else float(value)
