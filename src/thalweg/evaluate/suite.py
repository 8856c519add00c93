"""The whole evaluation of a trained model: sample quality with baselines, detection, likelihood, copies, pictures.

`evaluate_bundle` takes an `Evaluable` and gives numbers, fit for JSON, and PNG bytes; `thalweg.evaluate.report` turns
them into a page.
"""

import logging
import math
import platform
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from thalweg.core.errors import NotNormalised, UserError, kind_of
from thalweg.core.rng import generator
from thalweg.energy.base import Capability, NoisyEnergyFn
from thalweg.evaluate import pictures as draw
from thalweg.evaluate import vectors
from thalweg.evaluate.chains import NUM_CHAINS, HasChains, chain_figures
from thalweg.evaluate.corruptions import corrupted
from thalweg.evaluate.detection import detection_table, in_blocks
from thalweg.evaluate.digit_network import DigitNetwork, digit_network_for
from thalweg.evaluate.likelihood import bits_per_dim, compare, dequantise, gaussian_prior, ode_log_prob
from thalweg.evaluate.samples import baselines, nearest, plain_features, quality
from thalweg.evaluate.states import HasStates, likelihood_of_states
from thalweg.normaliser.estimate import LogProb

log = logging.getLogger("thalweg")
CURVES = ("loss", "space", "time", "gap", "grad_norm")


class Evaluable(Protocol):
    """A model that can be evaluated; x is in data units.

    With `HasNoisyEnergy` its likelihood is checked by the ODE, with `HasChains` its chains are diagnosed.
    """

    @property
    def kind(self) -> str:
        """What the data are, for the report: "image" or "vector"."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row, without the batch dimension."""
        ...

    def energy(self, x: Tensor, /) -> Tensor:
        """(B,) energies in nats; low = like the data."""
        ...

    def log_prob(self, x: Tensor, /) -> Tensor | LogProb:
        """(B,) log-densities in nats, or an estimate with its interval; raises `NotNormalised` where there is none."""
        ...

    def sample(self, n: int, /, *, seed: int = 0) -> Tensor:
        """(n, *) samples in the data's own units."""
        ...


@runtime_checkable
class HasNoisyEnergy(Protocol, metaclass=Capability):
    """A model whose energy may be U(y, t), y in model units. An evaluation asks, for the probability-flow ODE."""

    @property
    def noisy_energy(self) -> NoisyEnergyFn | None:
        """U(y, t); None where the energy has no noise levels."""
        ...

    @property
    def t_min(self) -> float:
        """The lowest noise variance."""
        ...

    @property
    def t_max(self) -> float:
        """The highest noise variance."""
        ...

    def encode(self, x: Tensor, /) -> Tensor:
        """Data units to model units, on the device of `noisy_energy`."""
        ...

    def prior_log_prob(self, y: Tensor, /) -> Tensor:
        """log p(y) at t_max, (B,) nats."""
        ...


class Evaluation(NamedTuple):
    """figures: nested dicts, lists, strings and finite numbers, fit for JSON; pictures: PNG bytes by name."""

    figures: dict[str, Any]
    pictures: dict[str, bytes]


class _Sets(NamedTuple):
    samples: Tensor  # (n, *)
    reference: Tensor  # (n, *) unseen data that figures are taken against
    unseen: Tensor  # (n, *) other unseen data: the column of what is attainable
    train: Tensor  # (m, *)


def _require_scale(**sets: Tensor) -> None:
    """UserError where squared distances of rows overflow float32."""
    for name, x in sets.items():
        if not x.numel() or not x.is_floating_point():
            continue
        largest, most = float(x.abs().max()), 0.1 * math.sqrt(torch.finfo(torch.float32).max / x[0].numel())
        if not largest <= most:
            text = f"must hold values up to {most:.3g}, and holds {largest:.3g}"
            raise UserError(text, argument=name, hint="rescale the columns and train again")


def _split(bundle: Evaluable, train: Tensor, held_out: Tensor, num_samples: int, seed: int) -> _Sets:
    """Samples, reference and a second unseen part of one size, so that no column has an advantage."""
    n = min(num_samples, len(held_out) // 2)
    if n < 10:
        text = f"must hold 20 rows or more, and num_samples must be 10 or more, not {len(held_out)} and {num_samples}"
        raise UserError(text, argument="held_out")
    order = torch.randperm(len(held_out), generator=generator(seed, "evaluate-split"))
    return _Sets(bundle.sample(n, seed=seed).cpu(), held_out[order[:n]], held_out[order[n : 2 * n]], train)


def _quality(sets: _Sets, network: DigitNetwork | None, seed: int) -> dict[str, dict[str, float]]:
    """Figures of the samples and of each baseline; for vectors of few columns the kernel discrepancy too, standardised,
    and points in a box as one more baseline.
    """
    columns = {"samples": sets.samples, **baselines(sets.unseen, sets.train, seed=seed)}
    plain = sets.reference.ndim == 2 and sets.reference.shape[1] <= vectors.MAX_DIM
    if plain:
        columns |= vectors.baselines(sets.unseen, sets.train, seed=seed)
    found = {name: quality(x, sets.reference, sets.train, network) for name, x in columns.items()}
    if plain:
        wanted = plain_features(sets.reference, sets.train)
        for name, x in columns.items():
            found[name] |= vectors.discrepancy(plain_features(x, sets.train), wanted)
    return found


class _OutsideError(Exception):
    """A row lies where the model has no mass."""


def _likelihood(bundle: Evaluable, sets: _Sets, seed: int) -> dict[str, Any] | None:
    """Mean log p of unseen data and of samples in nats, with the Gaussian fit beside.

    None where not normalised, or where a row lies outside the box of the constant.

    Of an energy of states the probabilities, exact where these can be counted, beside independent units.
    """
    if isinstance(bundle, HasStates) and bundle.countable is not None:
        return likelihood_of_states(bundle, sets.reference, sets.samples, sets.train)
    x, image = sets.reference, sets.reference.ndim == 4
    if image:
        x = dequantise(x, generator(seed, "dequantise"))
    try:
        first = bundle.log_prob(x[:1])
    except NotNormalised:
        return None

    def log_prob(rows: Tensor) -> Tensor:
        found = bundle.log_prob(rows)
        if isinstance(found, LogProb) and bool((found.estimate == -torch.inf).any()):
            raise _OutsideError
        return found.estimate if isinstance(found, LogProb) else found

    try:
        log_p, of_samples = (in_blocks(log_prob, rows, what="log p") for rows in (x, sets.samples))
    except _OutsideError:
        log.warning("no likelihood is reported: unseen rows or samples lie outside the box that log Z integrates over")
        return None
    d = x[0].numel()
    gaussian = gaussian_prior(sets.train, (bundle.t_min if isinstance(bundle, HasNoisyEnergy) else 0.0) or 1e-6)(x)
    row: dict[str, Any] = {
        "num": len(x),
        "nats": log_p.mean().item(),
        "nats_error": (log_p.std() / math.sqrt(len(log_p))).item(),
        "nats_samples": of_samples.mean().item(),
        "nats_gaussian": gaussian.mean().item(),
    }
    if isinstance(first, LogProb):
        for name, end in (("nats_low", first.low), ("nats_high", first.high)):
            shift = (end - first.estimate).item()
            row[name] = row["nats"] + shift if math.isfinite(shift) else None
    if image:
        row["bits_per_dim"] = bits_per_dim(log_p, d).mean().item()
        row["bits_per_dim_gaussian"] = bits_per_dim(gaussian, d).mean().item()
        row["bits_per_dim_uniform"] = 8.0
    return row


def _second_opinion(
    bundle: Evaluable, sets: _Sets, *, num_ode: int, num_steps: int, num_probes: int, seed: int
) -> tuple[Tensor, Tensor] | None:
    """(network, ODE) log p of the first num_ode unseen rows plus noise of variance t_min; None without a noisy energy.

    The noise makes them draws from the law that the model claims to know, p at t_min: off that law both numbers would
    extrapolate. In the model's units.
    """
    if not isinstance(bundle, HasNoisyEnergy) or (noisy := bundle.noisy_energy) is None or num_ode < 2:
        return None
    t_min, t_max = float(bundle.t_min), float(bundle.t_max)
    y = bundle.encode(sets.reference[:num_ode])
    draws = generator(seed, "noise-ode", device=y.device)
    y = y + math.sqrt(t_min) * torch.randn(y.shape, generator=draws, dtype=y.dtype, device=y.device)
    with torch.no_grad():
        network = -noisy(y, y.new_full((len(y),), t_min)).double()
    steps = {"num_steps": num_steps, "num_probes": num_probes, "seed": seed}
    ode = ode_log_prob(noisy, y, t_min=t_min, t_max=t_max, prior=bundle.prior_log_prob, **steps)
    return network.cpu(), ode.cpu()


def _memorisation(sets: _Sets, pictures: dict[str, bytes], columns: int = 10) -> dict[str, float]:
    """The samples nearest to the training set, drawn over their neighbours; their distances."""
    d, index = nearest(sets.samples, sets.train)
    order = d.argsort()[:columns]
    if sets.samples.ndim == 4:
        pairs = torch.cat([sets.samples[order], sets.train[index[order]]])
        pictures["neighbours"] = draw.grid(pairs, columns=len(order))
    unseen = nearest(sets.reference, sets.train)[0]
    return {"smallest_distance": d.min().item(), "smallest_distance_real": unseen.min().item()}


def _draw_samples(sets: _Sets, pictures: dict[str, bytes], num: int = 60) -> None:
    """Samples and real data, side by side."""
    if sets.samples.ndim == 4:
        pictures["samples"] = draw.grid(sets.samples[:num], columns=12)
        pictures["real"] = draw.grid(sets.reference[:num], columns=12)
    elif sets.samples.ndim == 2 and sets.samples.shape[1] > 1:
        pictures["samples"] = draw.png(draw.scatter(sets.samples, sets.reference))


def evaluate_bundle(
    bundle: Evaluable,
    *,
    train: Tensor,
    held_out: Tensor,
    held_out_labels: Tensor | None = None,
    out_sets: dict[str, Tensor] | None = None,
    history: list[dict[str, float]] | None = None,
    num_samples: int = 1000,
    num_ode: int = 64,
    ode_steps: int = 24,
    ode_probes: int = 1,
    seed: int = 0,
) -> Evaluation:
    """Measure a model, on its device, on data that no training saw, every figure beside its baselines, on the CPU.

    num_samples bounds samples, reference and baselines alike (half of held_out bounds them too); out_sets
    are further sets to tell from the data, beside the corruptions; history is the run's metrics. Cost:
    num_samples samples, some ten energies for each, and 4 ode_steps Laplacians of num_ode rows. UserError where
    there is too little held-out data, or where their values are too large for a distance.
    """
    train, held_out = train.cpu(), held_out.cpu()
    held_out_labels = None if held_out_labels is None else held_out_labels.cpu()
    out_sets = {name: x.cpu() for name, x in (out_sets or {}).items()}
    _require_scale(train=train, held_out=held_out, **{f"out_sets[{k!r}]": x for k, x in out_sets.items()})
    sets = _split(bundle, train, held_out, num_samples, seed)
    network, facts, note = digit_network_for(
        held_out[:2000], None if held_out_labels is None else held_out_labels[:2000]
    )
    pictures: dict[str, bytes] = {}
    _draw_samples(sets, pictures)
    outs = out_sets | (corrupted(sets.unseen, seed=seed) if held_out.ndim in (2, 4) else {})
    energies = {"unseen data": sets.reference, "samples": sets.samples, **outs}
    energies = {name: in_blocks(bundle.energy, x) for name, x in energies.items()}
    pictures["energies"] = draw.png(draw.energy_strips(energies))
    if history and (figure := draw.curves(history, CURVES)):
        pictures["training"] = draw.png(figure)
    figures = {
        "about": {
            "kind": bundle.kind,
            "shape": [int(s) for s in bundle.shape],
            "num_samples": len(sets.samples),
            "num_held_out": len(held_out),
            "num_train": len(train),
            "seed": seed,
            "digit_network": facts,
            "digit_network_note": note,
            "versions": versions(),
        },
        "quality": _quality(sets, network, seed),
        "memory": _memorisation(sets, pictures),
        "detection": detection_table(bundle.energy, sets.reference, outs, train) if outs else [],
        "energy": {name: {"mean": u.mean().item(), "std": u.std().item()} for name, u in energies.items()},
        "likelihood": _likelihood(bundle, sets, seed),
    }
    chains = bundle.chains(NUM_CHAINS, seed=seed) if isinstance(bundle, HasChains) else None
    if chains is not None:
        figures["chains"] = chain_figures(*chains, seed=seed)
    if figures["likelihood"] is not None and (
        both := _second_opinion(bundle, sets, num_ode=num_ode, num_steps=ode_steps, num_probes=ode_probes, seed=seed)
    ):
        figures["likelihood"]["ode"] = compare(*both)
        pictures["agreement"] = draw.png(draw.agreement(*both))
    require_finite(figures)
    return Evaluation(figures, pictures)


def versions() -> dict[str, str]:
    """Versions of what computed the figures."""
    import numpy

    import thalweg

    return {
        "thalweg": thalweg.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def require_finite(value: Any, where: str = "figures") -> None:
    """`ValueError` naming the first number that is not finite, or the first value that JSON cannot hold."""
    if isinstance(value, dict):
        for key, inner in value.items():
            require_finite(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            require_finite(inner, f"{where}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: the evaluation is not sound; check the samples and energies")
    elif not isinstance(value, str | int | float | bool | None):
        raise ValueError(f"{where} is {kind_of(value)}, which JSON cannot hold")
