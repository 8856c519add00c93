"""From a recipe to a bundle: the one place where applications train.

A run folder comes into being with `config.json`, grows by checkpoints, metrics and previews, and becomes a bundle when
its manifest is written at the end. Killed at any moment before, it resumes. Of several processes, started by torchrun,
the first alone writes.
"""

import json
import logging
import math
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import thalweg
from thalweg.apps.bundle import FILES, FORMAT, Bundle, load, read_config, write_bundle
from thalweg.apps.classify import calibrate, first_labels, require_labels
from thalweg.apps.guess import fit_mixture_prior
from thalweg.apps.place import Place
from thalweg.apps.request import Request, compare, data_tree, origin, run_tree
from thalweg.core import config as specs
from thalweg.core import store
from thalweg.core.errors import DamagedFile, Diverged, ThalwegError, UserError
from thalweg.core.rng import generator
from thalweg.data.catalog import Dataset, as_float
from thalweg.data.catalog import load as load_data
from thalweg.data.loader import Loader
from thalweg.objective.base import Batch
from thalweg.train.distributed import Alone, Ranks, joined
from thalweg.train.plan import NAME as PLAN
from thalweg.train.plan import Plan
from thalweg.train.settings import DataSettings, RunSettings, TrainSettings, checked, stored, validate
from thalweg.train.state import FOLDER
from thalweg.train.track import NAME as METRICS
from thalweg.train.track import Progress
from thalweg.train.trainer import Interrupted, Trainer

__all__ = ["NothingBegun", "Request", "fit", "settings"]

log = logging.getLogger("thalweg")
ANCHOR_ROWS = 20_000
FOLDERS = (FOLDER, "tensorboard")
WRITTEN = (*FILES, PLAN, METRICS, "preview.png", "card.md", "evaluation.json", "report.html", store.MANIFEST)


class _Company(NamedTuple):
    """Who works, and who watches."""

    ranks: Alone | Ranks
    progress: Progress | None
    say: Callable[[str], None]
    tensorboard: bool


class NothingBegun(Interrupted):
    """Told to stop before there was anything to keep: the folder is as it was."""

    resumable = False


def fit(
    request: Request,
    folder: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = log.info,
    tensorboard: bool = True,
) -> Bundle:
    """Train and leave a bundle in `folder`; with `resume` go on with the run that is there.

    UserError: bad data, recipe or key, a folder in use, a resumed run of which something else is asked. Interrupted and
    Diverged as the trainer raises them; the folder then resumes. NothingBegun: stopped so early that nothing was kept.
    """
    folder = Path(folder)
    if request.minutes is not None and request.steps is not None:
        raise UserError("give --minutes or --steps, not both: either is the whole budget")
    with joined() as ranks:
        if ranks.rank:
            progress, say = None, log.info
        try:
            return _fit(request, folder, resume, _Company(ranks, progress, say, tensorboard))
        except (Interrupted, Diverged) as error:
            error.heard = ranks.rank > 0  # pyright: ignore[reportAttributeAccessIssue] — the first rank tells it
            raise


def _fit(request: Request, folder: Path, resume: bool, company: _Company) -> Bundle:
    ranks = company.ranks
    started = ranks.told(lambda: os.path.isfile(folder / "config.json"))
    if started and not resume:
        raise UserError(f"{folder}: holds a run already; add --resume to go on with it, or name another folder with -o")
    if started and ranks.told((folder / store.MANIFEST).is_file):
        bundle = load(folder)
        _stored(folder, bundle.config, request)
        company.say(f"{folder} is complete; nothing left to do")
        return bundle
    place = Place(folder, folders=FOLDERS, files=WRITTEN, claim=ranks.rank == 0)
    try:
        with _stoppable(place, started):
            return (_go_on if started else _begin)(request, place, company)
    finally:
        place.let_go()


def _begin(request: Request, place: Place, company: _Company) -> Bundle:
    _unused(place)
    config, run, data = _new(request)
    transform, trainer = _trainer(run, data, place.folder, company)
    company.say(f"data: {data.source}")  # after all that can be wrong with the input: an error is one line
    config["run"]["transform"] = specs.plain(transform.to_dict())  # fitted, so that an unfinished run can be read
    company.ranks.agree("data, settings or versions", lambda: json.dumps(config))

    company.ranks.first(place.begin)

    def write() -> None:
        store.write_json(place.folder / "config.json", config)

    try:
        company.ranks.first(write)
        return _train(config, run, data, transform, trainer)
    except ThalwegError as error:
        diverged = isinstance(error, Diverged) and (place.folder / PLAN).exists()  # its log tells where
        if not diverged and not _has_checkpoint(place.folder):
            place.leave()
        raise


def _go_on(request: Request, place: Place, company: _Company) -> Bundle:
    company.ranks.first(place.hold)
    config = read_config(place.folder)
    run = _stored(place.folder, config, request)
    plan = Plan.load(place.folder)
    if plan is not None:
        plan.require(company.ranks.size, place.folder)
    data = _read(run.data, run.seed)
    if data.fingerprint != config["data"]["fingerprint"]:
        raise UserError(
            f"{place.folder}: the data have changed since the run began ({data.source}); put back those it began with"
        )
    if config["data"].get("labels") not in (None, data.label_fingerprint):
        raise UserError(
            f"{place.folder}: the labels have changed since the run began ({data.source}); put back those it began with"
        )
    company.say(f"data: {data.source}")
    if not _has_checkpoint(place.folder):
        company.say(f"{place.folder} holds no checkpoint yet: it begins at step 0")
    try:
        transform, trainer = _trainer(run, data, place.folder, company)
    except UserError as error:  # these values did build when the run began
        raise _damaged(place.folder, error) from error
    return _train(config, run, data, transform, trainer)


def _train(config: dict[str, Any], run: RunSettings, data: Dataset, transform: Any, trainer: Trainer) -> Bundle:
    from thalweg.apps.preview import Previews  # brings matplotlib along

    trainer.hooks = (Previews(run, data.kind, transform, trainer.folder, trainer.ranks),)
    energy = trainer.fit()
    trainer.ranks.first(lambda: _finish(config, energy, data, trainer, trainer.folder))
    return load(trainer.folder)


@contextmanager
def _stoppable(place: Place, started: bool) -> Iterator[None]:
    """Turn Ctrl-C, where the trainer does not catch it, into an error that says what there is to go on with."""
    try:
        yield
    except KeyboardInterrupt as stop:
        signum = getattr(stop, "signum", signal.SIGINT)
        if _has_checkpoint(place.folder):
            raise Interrupted(f"stopped; the newest checkpoint in {place.folder} is kept", signum) from stop
        if started:
            raise Interrupted(f"stopped before the first checkpoint; {place.folder} can go on", signum) from stop
        place.leave()
        raise NothingBegun(
            "stopped before the first checkpoint, nothing is kept; the same command starts anew", signum
        ) from stop


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / FOLDER).glob("step-*"))


def _unused(place: Place) -> None:
    """Refuse what a run has left in a folder without its config.json: a new run would take it for its own."""
    for name in (PLAN, store.MANIFEST):
        if name in place.before:
            raise UserError(f"{place.folder / name}: left by a run whose config.json is gone; move it away")
    if _has_checkpoint(place.folder):
        raise UserError(f"{place.folder / FOLDER}: left by a run whose config.json is gone; move it away")


def _stored(folder: Path, config: dict[str, Any], request: Request) -> RunSettings:
    """The run that a folder's config.json describes, once it is seen to be the one that is asked for."""
    try:
        run = stored(config)
    except UserError as error:
        raise _damaged(folder, error) from error
    compare(request, {**config, "run": run.model_dump(mode="json")}, folder)
    return run


def _damaged(folder: Path, error: UserError) -> DamagedFile:
    return DamagedFile(f"{folder / 'config.json'}: {error}; put back the file that the run wrote, or start another run")


def settings(request: Request, kind: str) -> RunSettings:
    """The validated run that a request describes on data of a kind ("image", "vector")."""
    return validate(run_tree(request, kind, TrainSettings.model_validate({}).model_dump()))


def _read(data: DataSettings, seed: int) -> Dataset:
    return load_data(data.name, data=data.path, hub=data.hub, seed=seed, held_out=data.held_out, limit=data.limit)


def _new(request: Request) -> tuple[dict[str, Any], RunSettings, Dataset]:
    data = _read(checked(DataSettings, data_tree(request), "data"), request.seed or 0)
    run = settings(request, data.kind)
    objective, energy, sampler = _parts(run, data)
    require_labels(objective, energy, data)
    energy_noisy = getattr(energy, "noisy", False)
    if getattr(sampler, "noisy", False) != energy_noisy:
        raise UserError(
            f"sampler.type={run.sampler['type']} does not sample from energy.type={run.energy['type']}; one takes a "
            "noise level and the other does not: change either"
        )
    if objective.noisy != energy_noisy:
        raise UserError(
            f"objective.type={run.objective['type']} wants an energy {'U(y, t)' if objective.noisy else 'E(x)'}, and "
            f"energy.type={run.energy['type']} is not one; change either"
        )
    if run.augment:
        specs.build(run.augment)(torch.zeros(2, *data.shape), generator(0, "dry-run"), 0.0)
    _dry_run(objective, energy, sampler, Batch(torch.zeros(2, *data.shape), first_labels(data, 2)))
    config = {
        "format": FORMAT,
        "thalweg": thalweg.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "command": request.command,
        "normalised": bool(objective.normalises and energy_noisy),
        **origin(request, data.kind),
        "data": {
            "source": data.source,
            "fingerprint": data.fingerprint,
            "labels": data.label_fingerprint if getattr(energy, "num_classes", None) else None,
            "kind": data.kind,
            "shape": list(data.shape),
            "num_train": len(data.train),
            "num_held_out": len(data.held_out),
        },
        "run": specs.plain(run.model_dump()),
    }
    return config, run, data


def _parts(run: RunSettings, data: Dataset) -> tuple[Any, Any, Any]:
    """Objective, energy and sampler, built, and seen to be what they are called and to take the data."""
    shape = " x ".join(map(str, data.shape))
    unfit = f"energy.type={run.energy['type']}: does not take {data.kind} rows of {shape}; choose another"
    objective, sampler = specs.build(run.objective), specs.build(run.sampler)
    try:
        energy = specs.build(run.energy, shape=data.shape)
    except UserError as error:  # the user gave data, not a shape
        raise (UserError(f"{unfit}, or other data") if ": shape=" in str(error) else error) from error
    parts = (("objective", objective, "loss"), ("energy", energy, "forward"), ("sampler", sampler, "step"))
    for name, part, method in parts:
        if not callable(getattr(part, method, None)):
            raise UserError(f"{name}.type={getattr(run, name)['type']}: is no {name}, it has no {method}")
    x = torch.zeros(2, *data.shape)
    try:
        with torch.no_grad():
            u = energy(x, torch.ones(2)) if getattr(energy, "noisy", False) else energy(x)
        fits = u.shape == (2,)
    except (RuntimeError, ValueError, TypeError, IndexError):
        fits = False
    if not fits:
        raise UserError(unfit)
    return objective, energy, sampler


def _dry_run(objective: Any, energy: Any, sampler: Any, batch: Batch) -> None:
    """One loss and one sampling step on two rows, so that a senseless value is met before any work."""
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
            raise UserError(f"{name}: a trial step with these values fails ({reason}); change them") from error
    levels = getattr(objective, "levels", None)
    if levels is None or not hasattr(energy, "t_min"):
        return
    wanted = (math.sqrt(energy.t_min), math.sqrt(energy.t_max))
    for name, part in (("objective.levels", levels), ("sampler", sampler)):
        found = (part.sigma_min, part.sigma_max)
        if not all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(found, wanted, strict=True)):
            raise UserError(
                f"{name}: sigma_min, sigma_max = {found[0]:g}, {found[1]:g} and the energy's are {wanted[0]:g}, "
                f"{wanted[1]:g}; give all three the same"
            )


def _trainer(run: RunSettings, data: Dataset, folder: Path, company: _Company) -> tuple[Any, Trainer]:
    ranks = company.ranks
    some = as_float(data.train[:ANCHOR_ROWS])
    transform = specs.build(run.transform).fit(some)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)  # constructors draw the first weights from the global generator
        energy: nn.Module = specs.build(run.energy, shape=data.shape)
    if hasattr(energy, "fit"):
        energy.fit(transform.forward(some))  # pyright: ignore[reportCallIssue]
    trainer = Trainer(
        energy=energy,
        objective=specs.build(run.objective),
        loader=Loader(
            data.train,
            data.train_labels,
            batch_size=run.train.batch_size,
            seed=run.seed,
            rank=ranks.rank,
            world_size=ranks.size,
        ),
        transform=transform,
        settings=run.train,
        folder=folder,
        seed=run.seed,
        progress=company.progress,
        tensorboard=company.tensorboard,
        augment=specs.build(run.augment) if run.augment else None,
        ranks=ranks,
    )
    return transform, trainer


def _finish(config: dict[str, Any], energy: nn.Module, data: Dataset, trainer: Trainer, folder: Path) -> None:
    plan = Plan.load(folder)
    config = {
        **config,
        "precision": plan.precision if plan else "fp32",
        "training": {
            "steps": trainer.state.step,
            "seconds": round(trainer.state.seconds, 1),
            "rollbacks": trainer.state.guard.rollbacks,
        },
    }
    bundle = Bundle(config, dict(energy.state_dict()), None, folder)
    if bundle.num_classes and data.held_out_labels is not None:
        config["classes"] = calibrate(bundle, as_float(data.held_out), data.held_out_labels)
    held_out = bundle.energy(as_float(data.held_out))
    write_bundle(folder, config, bundle.model.state_dict(), held_out, fit_mixture_prior(bundle, data.train))
    store.write_bytes(folder / "card.md", card(config).encode("utf-8", "backslashreplace"))


def card(config: dict[str, Any]) -> str:
    """A model card in the Hub's form: what the bundle is, from which data, by which command."""
    data, training = config["data"], config.get("training", {})
    claim = "normalised: -E(x) is log p(x) in nats" if config["normalised"] else "its additive constant is unknown"
    return (
        "---\nlibrary_name: thalweg\ntags: [energy-based-model]\n---\n"
        f"# An energy of {config['run']['data']['name']}\n\n"
        f"Data: {data['source']}.\n\n"
        f"The energy is {claim}. Trained {training.get('steps')} steps in {training.get('seconds')} s with "
        f"thalweg {config['thalweg']}, torch {config['torch']}.\n\n"
        f"Command: `{config['command']}`\n\n"
        "```python\nimport thalweg\nbundle = thalweg.load('PATH')\nbundle.energy(x); bundle.sample(16)\n```\n"
    )
