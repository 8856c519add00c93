"""The parts that a run is made of: built, checked against the data and each other, and fitted to the data."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from thalweg.core import config as specs
from thalweg.core.errors import UserError, one_line
from thalweg.core.rng import generator
from thalweg.data.catalog import Dataset, as_float
from thalweg.data.files import is_table
from thalweg.data.float32_check import Float32Transform, check_fitted
from thalweg.data.formats.npz import Npz, other_labels
from thalweg.data.stored_rows import some_rows
from thalweg.data.transform import OneHot, Transform
from thalweg.energy.base import (
    Classifier,
    Discrete,
    Fittable,
    FittableInParts,
    HasNoiseLevels,
    lacking,
    require_noise_conditional,
)
from thalweg.energy.building import from_spec
from thalweg.objective.base import Batch, Labelled, Objective
from thalweg.objective.score.derivatives import untold
from thalweg.run.given import Given
from thalweg.run.module_checks import check_module, check_second_derivatives, check_tensors, is_foreign
from thalweg.run.target_checks import check_targets
from thalweg.sampler.base import Sampler, require_match
from thalweg.training.settings import RunSettings
from thalweg.training.step import Augment

ANCHOR_ROWS = 20_000
ANCHOR_NUMBERS = 2**27  # of these rows, in model units: long texts are fewer
PART = 4096  # rows that are given at a time to an energy that takes all of them


class Parts(NamedTuple):
    """What the specs of a run describe. `augment`: None where the run has none; `chosen`: why it is this one, where the
    images decided."""

    energy: nn.Module
    objective: Objective[Any]
    sampler: Sampler[Any]
    augment: Augment | None
    transform: Transform
    chosen: str | None = None


def build_parts(run: RunSettings, data: Dataset, given: Given | None = None) -> Parts:
    """The parts of a run: those that are given, and the others built. First weights follow from the seed."""
    given = given or Given()
    objective = given.objective or specs.build(run.objective, "objective")
    sampler = given.sampler or specs.build(run.sampler, "sampler")
    transform = _for_data(given.transform or specs.build(run.transform, "transform"), run, data)
    augment = specs.build(run.augment, "augment") if run.augment else None
    if given.energy is not None:
        return Parts(given.energy, objective, sampler, augment, transform)
    try:
        with torch.random.fork_rng(devices=[]):  # constructors draw the first weights from the CPU's global generator
            torch.default_generator.manual_seed(run.seed)
            energy = from_spec(run.energy, "energy", data.energy_shape)
    except UserError as error:
        of_shape = any(isinstance(e, UserError) and e.argument == "shape" for e in (error, error.__cause__))
        raise (_unfit(run, data, ", or other data") if of_shape else error) from error
    return Parts(energy, objective, sampler, augment, transform)


def _for_data(transform: Any, run: RunSettings, data: Dataset) -> Any:
    """The transform; of texts with as many states as their alphabet. UserError where it does not take such codes."""
    if data.alphabet is None:
        return transform
    num = data.alphabet.num_states
    if not isinstance(transform, OneHot) or transform.num_states not in (None, num):
        text, hint = f"must be OneHot for texts, of {num} states", "leave it out"
        raise UserError(text, argument="transform", value=run.transform.get("type"), hint=hint)
    return OneHot(num_states=num)


def check_parts(parts: Parts, run: RunSettings, data: Dataset) -> None:
    """UserError unless the parts are what they are called, fit the data and each other, and work on two rows.

    Leaves the energy as it was.
    """
    _require_kind("objective", isinstance(parts.objective, Objective), run.objective)
    _require_kind("energy", isinstance(parts.energy, nn.Module), run.energy)
    _require_kind("sampler", isinstance(parts.sampler, Sampler), run.sampler)
    _require_states(parts.energy, run, data)
    foreign = is_foreign(parts.energy)
    if foreign:
        check_tensors(parts.energy)
    buffers = [buffer.clone() for buffer in parts.energy.buffers()]
    try:
        if foreign:
            rows = _trial_rows(data, torch.rand(2, *data.shape, generator=generator(0, "dry-run")))
            check_module(parts.energy, rows, noisy=isinstance(parts.energy, HasNoiseLevels))
        with torch.random.fork_rng(devices=[]):
            _check_shape(parts.energy, run, data)
        _require_labels(parts.objective, parts.energy, data)
        check_targets(parts.energy, parts.transform, run, data)
        _check_noise(parts, run)
        x = torch.zeros(2, *data.shape)
        if parts.augment is not None:
            parts.augment(x, generator(0, "dry-run"), 0.0)
        batch = Batch(_trial_rows(data, x), None if data.train_labels is None else data.train_labels[:2])
        if foreign:
            check_second_derivatives(parts.energy, parts.objective, batch)
        with torch.random.fork_rng(devices=[]), untold():  # a network of the user's may draw, as dropout does
            _dry_run(parts, batch)
    finally:  # a forward pass moves the power iteration of spectral norms, for example
        for buffer, before in zip(parts.energy.buffers(), buffers, strict=False):
            buffer.copy_(before)


def fit_to_data(parts: Parts, data: Dataset) -> Float32Transform:
    """Fit the transform, which is returned, and the energy where it has something to fit, to some training rows."""
    most = max(1, min(ANCHOR_ROWS, ANCHOR_NUMBERS // math.prod(data.energy_shape)))
    some = as_float(some_rows(data.train, most))
    fitted = parts.transform.fit(some)
    if data.kind == "vector":
        check_fitted(fitted, some, data.layout.owners, data.name)
    transform = Float32Transform(fitted, some.dtype)
    if isinstance(parts.energy, Fittable):
        try:
            if isinstance(parts.energy, FittableInParts):
                parts.energy.fit_parts(transform.forward(as_float(part)) for part in data.train.split(PART))
            else:
                parts.energy.fit(transform.forward(some))
        except (TypeError, RuntimeError, AttributeError) as error:
            if not is_foreign(parts.energy):
                raise
            text = f"must take rows (N, *), as a run calls it before training ({one_line(error)})"
            raise UserError(text, argument="energy.fit", hint="give the method another name") from error
    return transform


def _trial_rows(data: Dataset, x: Tensor) -> Tensor:
    """Two rows in model units to try parts on: x; of texts two of the data, as an energy of states takes no others."""
    if data.alphabet is None:
        return x
    return OneHot(num_states=data.alphabet.num_states).forward(some_rows(data.train, 2))


def _require_states(energy: nn.Module, run: RunSettings, data: Dataset) -> None:
    """UserError unless an energy of texts is one of as many states as their alphabet has."""
    if data.alphabet is None or (isinstance(energy, Discrete) and energy.num_states == data.alphabet.num_states):
        return
    what = f"of {energy.num_states}" if isinstance(energy, Discrete) else f"none; {lacking(energy, Discrete)}"
    text = f"must be an energy of {data.alphabet.num_states} states, the alphabet of the texts, and it is {what}"
    raise UserError(text, argument="energy.type", value=run.energy["type"], hint="take --recipe words")


def _unfit(run: RunSettings, data: Dataset, other: str = "") -> UserError:
    rows = " x ".join(map(str, data.shape))
    text, kind = f"does not take {data.kind} rows of {rows}", run.energy["type"]
    return UserError(text, argument="energy.type", value=kind, hint=f"choose another{other}")


def _require_kind(part: str, is_one: bool, spec: dict[str, Any]) -> None:
    if not is_one:
        raise UserError(f"must name a class of {part}s", argument=f"{part}.type", value=spec["type"])


def _check_shape(energy: nn.Module, run: RunSettings, data: Dataset) -> None:
    x = _trial_rows(data, torch.zeros(2, *data.shape))
    try:
        with torch.no_grad():
            u = energy(x, torch.ones(2)) if isinstance(energy, HasNoiseLevels) else energy(x)
        fits = isinstance(u, Tensor) and u.shape == (2,)
    except (RuntimeError, ValueError, TypeError, IndexError):
        fits = False
    if not fits:
        raise _unfit(run, data)


def _check_noise(parts: Parts, run: RunSettings) -> None:
    noisy, specs_of = isinstance(parts.energy, HasNoiseLevels), {"energy": run.energy, "sampler": run.sampler}
    try:
        if noisy:
            require_noise_conditional(parts.energy)
        require_match(parts.sampler, parts.energy)
    except UserError as error:
        if error.argument in specs_of:
            raise error.replace(argument=f"{error.argument}.type", value=specs_of[error.argument]["type"]) from error
        raise error.within("sampler" if error.argument == "num_steps" else "energy") from error
    if parts.objective.noisy != noisy:
        wanted = "U(y, t)" if parts.objective.noisy else "E(x)"
        text = f"must be an energy {wanted}, which objective.type={run.objective['type']} trains"
        raise UserError(text, argument="energy.type", value=run.energy["type"], hint="change either")


def _dry_run(parts: Parts, batch: Batch) -> None:
    """One loss and one sampling step on two rows, so that a senseless value is met before any work."""
    energy, objective, sampler = parts.energy, parts.objective, parts.sampler
    draws, faults = generator(0, "dry-run"), (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError)
    for name in ("objective", "sampler"):
        try:
            if name == "objective":
                state = objective.init(energy, batch.x, draws)
                _check_loss(objective.loss(energy, state, batch, objective.draw(state, batch, draws, 0.0)))
            else:
                state = sampler.init(energy, batch.x)
                state, info = sampler.step(energy, state, sampler.draw(state, draws))
                if not isinstance(info, tuple) or state.x.shape != batch.x.shape:
                    raise TypeError("step must give a state with x and Info")
        except faults as error:
            reason = (str(error).splitlines() or [repr(error)])[0]
            text = f"must allow a step, and a trial step fails ({reason})"
            raise UserError(text, argument=name, hint="change its values") from error


def _check_loss(found: Any) -> None:
    """TypeError unless these are a loss () with a graph, a state and metrics () by name."""
    loss, _, metrics = found
    if not isinstance(loss, Tensor) or loss.shape != () or not loss.requires_grad:
        raise TypeError("the loss must be a tensor () with a graph")
    if not all(isinstance(name, str) and isinstance(m, Tensor) and m.shape == () for name, m in metrics.items()):
        raise TypeError("metrics must be tensors () by name")


def _require_labels(objective: Objective[Any], energy: nn.Module, data: Dataset) -> None:
    """UserError unless the data's labels are those of the energy's classes, if the objective learns any."""
    if not (isinstance(objective, Labelled) and objective.labelled):
        return
    if not isinstance(energy, Classifier):
        text = f"must have classes, which the objective learns; {lacking(energy, Classifier)}"
        hint = "take thalweg.energy.noise_conditional.classifier:JointUNetEnergy"
        raise UserError(text, argument="energy.type", hint=hint)
    num = energy.num_classes
    if data.train_labels is None or data.held_out_labels is None:
        text = "must have labels, which are whole numbers, for the objective to learn"
        hint = "give an npz with y_train, y or labels beside the rows, or train without classes by --recipe dual"
        if Path(data.name).is_dir():
            hint = "add --labels folder, if its folders are classes, or --labels FILE.csv; --recipe dual needs none"
        elif is_table(Path(data.name)):
            hint = "add --labels COLUMN"
        elif Path(data.name).suffix.lower() in Npz.suffixes and (other := other_labels(Path(data.name))):
            text = f"{text}, and {other}"
            hint = "number the classes from 0, or train without classes by --recipe dual"
        raise UserError(text, argument=data.name, hint=hint)
    found = torch.cat([data.train_labels, data.held_out_labels]).unique()
    low, high = int(found[0]), int(found[-1])
    if low == high:
        raise UserError(f"must have labels of two classes or more, and all are {low}", argument=data.name)
    if low < 0 or high >= num:
        text = f"must have labels from 0 to {num - 1}, as energy.num_classes={num}, and has {low} to {high}"
        hint = "number the classes from 0"
        hint += f", or add energy.num_classes={high + 1}" if low >= 0 else ""
        raise UserError(text, argument=data.name, hint=hint)
