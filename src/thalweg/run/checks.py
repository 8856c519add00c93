"""The parts that a run is made of: built, checked against the data and each other, and fitted to the data."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from thalweg.core import config as specs
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.catalog import Dataset, as_float
from thalweg.data.float32_check import Float32Transform, check_fitted
from thalweg.energy.base import Classifier, HasNoiseLevels, lacking, require_noise_conditional
from thalweg.objective.base import Batch, Labelled
from thalweg.sampler.base import require_match
from thalweg.training.settings import RunSettings

ANCHOR_ROWS = 20_000
METHODS = {"objective": "loss", "energy": "forward", "sampler": "step"}


class Parts(NamedTuple):
    """What the specs of a run describe. `augment`: None where the run has none."""

    energy: Any
    objective: Any
    sampler: Any
    augment: Any


def build_parts(run: RunSettings, data: Dataset) -> Parts:
    """The parts of a run, of which nothing else is known. The energy's first weights follow from the run's seed."""
    objective, sampler = specs.build(run.objective, "objective"), specs.build(run.sampler, "sampler")
    augment = specs.build(run.augment, "augment") if run.augment else None
    try:
        with torch.random.fork_rng():
            torch.manual_seed(run.seed)  # constructors draw the first weights from the global generator
            energy = specs.build(run.energy, "energy", shape=data.shape)
    except UserError as error:
        raise (_unfit(run, data, ", or other data") if _of_shape(error) else error) from error
    return Parts(energy, objective, sampler, augment)


def check_parts(parts: Parts, run: RunSettings, data: Dataset) -> None:
    """UserError unless the parts are what they are called, fit the data and each other, and work on two rows.

    Leaves the energy as it was.
    """
    _check_kinds(parts, run)
    buffers = [buffer.clone() for buffer in parts.energy.buffers()]
    try:
        _check_shape(parts.energy, run, data)
        _require_labels(parts.objective, parts.energy, data)
        _check_noise(parts, run)
        x = torch.zeros(2, *data.shape)
        if parts.augment is not None:
            parts.augment(x, generator(0, "dry-run"), 0.0)
        _dry_run(parts, Batch(x, _first_labels(data, 2)))
    finally:  # a forward pass moves the power iteration of spectral norms, for example
        for buffer, before in zip(parts.energy.buffers(), buffers, strict=False):
            buffer.copy_(before)


def fit_to_data(parts: Parts, run: RunSettings, data: Dataset) -> Float32Transform:
    """Fit the transform, which is returned, and the energy where it has something to fit, to some training rows."""
    some = as_float(data.train[:ANCHOR_ROWS])
    fitted = specs.build(run.transform, "transform").fit(some)
    if data.kind == "vector":
        check_fitted(fitted, some, data.layout.names, data.name)
    transform = Float32Transform(fitted, some.dtype)
    if hasattr(parts.energy, "fit"):
        parts.energy.fit(transform.forward(some))
    return transform


def _of_shape(error: UserError) -> bool:
    """Whether the energy's constructor complained about the shape, which the data gave and not the user."""
    return any(isinstance(e, UserError) and e.argument == "shape" for e in (error, error.__cause__))


def _unfit(run: RunSettings, data: Dataset, other: str = "") -> UserError:
    rows = " x ".join(map(str, data.shape))
    text, kind = f"does not take {data.kind} rows of {rows}", run.energy["type"]
    return UserError(text, argument="energy.type", value=kind, hint=f"choose another{other}")


def _check_kinds(parts: Parts, run: RunSettings) -> None:
    for name, method in METHODS.items():
        if not callable(getattr(getattr(parts, name), method, None)):
            kind = getattr(run, name)["type"]
            raise UserError(f"is no {name}, it has no {method}", argument=f"{name}.type", value=kind)


def _check_shape(energy: Any, run: RunSettings, data: Dataset) -> None:
    x = torch.zeros(2, *data.shape)
    try:
        with torch.no_grad():
            u = energy(x, torch.ones(2)) if isinstance(energy, HasNoiseLevels) else energy(x)
        fits = isinstance(u, Tensor) and u.shape == (2,)
    except (RuntimeError, ValueError, TypeError, IndexError):
        fits = False
    if not fits:
        raise _unfit(run, data)


def _check_noise(parts: Parts, run: RunSettings) -> None:
    noisy = isinstance(parts.energy, HasNoiseLevels)
    try:
        if noisy:
            require_noise_conditional(parts.energy)
        require_match(parts.sampler, parts.energy)
    except UserError as error:
        if error.argument in ("energy", "sampler"):
            kind = getattr(run, error.argument)["type"]
            raise error.replace(argument=f"{error.argument}.type", value=kind) from error
        raise error.within("sampler" if error.argument == "num_steps" else "energy") from error
    if parts.objective.noisy != noisy:
        raise UserError(
            f"wants an energy {'U(y, t)' if parts.objective.noisy else 'E(x)'}, which energy.type={run.energy['type']} "
            "is not",
            argument="objective.type",
            value=run.objective["type"],
            hint="change either",
        )


def _dry_run(parts: Parts, batch: Batch) -> None:
    """One loss and one sampling step on two rows, so that a senseless value is met before any work."""
    energy, objective, sampler = parts.energy, parts.objective, parts.sampler
    draws, faults = generator(0, "dry-run"), (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError)
    for name in ("objective", "sampler"):
        try:
            if name == "objective":
                state = objective.init(energy, batch.x, draws)
                objective.loss(energy, state, batch, objective.draw(state, batch, draws, 0.0))
            else:
                state = sampler.init(energy, batch.x)
                sampler.step(energy, state, sampler.draw(state, draws))
        except faults as error:
            reason = (str(error).splitlines() or [repr(error)])[0]
            text = f"a trial step with these values fails ({reason})"
            raise UserError(text, argument=name, hint="change them") from error


def _first_labels(data: Dataset, n: int) -> Int[Tensor, " n"] | None:
    """The labels of the first n training rows; None where the data have none."""
    return None if data.train_labels is None else data.train_labels[:n]


def _require_labels(objective: Any, energy: Any, data: Dataset) -> None:
    """UserError unless the data's labels are those of the energy's classes, if the objective learns any."""
    if not (isinstance(objective, Labelled) and objective.labelled):
        return
    if not isinstance(energy, Classifier):
        text = f"must have classes, which the objective learns; {lacking(energy, Classifier)}"
        raise UserError(
            text, argument="energy.type", hint="take thalweg.energy.noise_conditional.classifier:JointUNetEnergy"
        )
    num = energy.num_classes
    if data.train_labels is None or data.held_out_labels is None:
        raise UserError(
            f"{data.name}: no labels of whole numbers, which the objective learns: give an npz with y_train, y or "
            "labels beside the rows, or train without classes by --recipe dual"
        )
    found = torch.cat([data.train_labels, data.held_out_labels]).unique()
    low, high = int(found[0]), int(found[-1])
    if low == high:
        raise UserError(f"{data.name}: all labels are {low}: a classifier wants two classes or more")
    if low < 0 or high >= num:
        raise UserError(
            f"{data.name}: labels run from {low} to {high}, and energy.num_classes={num} takes 0 to {num - 1}: "
            f"number the classes from 0, or add energy.num_classes={max(2, high + 1)}"
        )
