"""From a recipe to a bundle: training in a run folder.

A run folder comes into being with `config.json`, grows by checkpoints, metrics and previews, and becomes a bundle when
its manifest is written at the end. Killed at any moment before, it resumes. Of several processes, started by torchrun,
rank 0 alone writes.
"""

import json
import logging
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from thalweg.bundle.bundle import Bundle
from thalweg.bundle.classes import calibrate
from thalweg.bundle.files import FILES, heading, load_as, read_config, write_bundle
from thalweg.bundle.prior import fit_mixture_prior, read_mixture_prior
from thalweg.core import config as specs
from thalweg.core import store
from thalweg.core.errors import DamagedFile, Diverged, ThalwegError, UserError
from thalweg.data.catalog import Dataset, as_float
from thalweg.data.catalog import load as load_data
from thalweg.data.loader import Loader
from thalweg.energy.base import HasNoiseLevels
from thalweg.run.card import card
from thalweg.run.checks import Parts, build_parts, check_parts, fit_to_data
from thalweg.run.preview import Previews
from thalweg.run.request import Request, compare, data_tree, origin, run_tree
from thalweg.run.run_folder import RunFolder
from thalweg.training.distributed import ProcessGroup, SingleProcess, joined
from thalweg.training.metrics_log import NAME as METRICS
from thalweg.training.metrics_log import Progress
from thalweg.training.plan import NAME as PLAN
from thalweg.training.plan import Plan, num_threads
from thalweg.training.settings import DataSettings, RunSettings, TrainSettings, checked, stored, validate
from thalweg.training.state import FOLDER
from thalweg.training.trainer import Interrupted, Trainer

__all__ = ["Fitted", "NothingBegun", "Request", "fit", "fit_with_data", "settings"]

logger = logging.getLogger("thalweg")
FOLDERS = (FOLDER, "tensorboard")
WRITTEN = (*FILES, PLAN, METRICS, "preview.png", "card.md", "evaluation.json", "report.html", store.MANIFEST)


class Fitted(NamedTuple):
    """What a run leaves. `data`: what it was trained on; None where the run was complete before and none were read."""

    bundle: Bundle
    data: Dataset | None


class RunContext(NamedTuple):
    """Which processes work on a run, and where it reports: `log` takes lines for people."""

    group: SingleProcess | ProcessGroup
    progress: Progress | None
    log: Callable[[str], None]
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
    log: Callable[[str], None] = logger.info,
    tensorboard: bool = True,
) -> Bundle:
    """Train and leave a bundle in `folder`; with `resume` go on with the run that is there.

    UserError: bad data, recipe or key, a folder in use, a resumed run of which something else is asked. Interrupted and
    Diverged as the trainer raises them; the folder then resumes. NothingBegun: stopped so early that nothing was kept.
    """
    return fit_with_data(request, folder, resume=resume, progress=progress, log=log, tensorboard=tensorboard).bundle


def fit_with_data(
    request: Request,
    folder: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    log: Callable[[str], None] = logger.info,
    tensorboard: bool = True,
) -> Fitted:
    """As `fit`, with the data that were read: an evaluation need not read them again."""
    folder = Path(folder)
    if request.minutes is not None and request.steps is not None:
        raise UserError("either is the whole budget", argument="minutes and steps", hint="give one of them")
    with joined() as group:
        if group.rank:
            progress, log = None, logger.info
        try:
            return _fit(request, folder, resume, RunContext(group, progress, log, tensorboard))
        except (Interrupted, Diverged) as error:
            error.already_reported = group.rank > 0  # rank 0 tells it
            raise


def _fit(request: Request, folder: Path, resume: bool, context: RunContext) -> Fitted:
    group = context.group
    started = group.broadcast(lambda: os.path.isfile(folder / "config.json"))
    if started and not resume:
        hint = "add --resume to go on with it, or name another folder with -o"
        raise UserError("holds a run already", argument=str(folder), hint=hint)
    if started and group.broadcast((folder / store.MANIFEST).is_file):
        bundle = load_as(folder, Bundle)
        _stored(folder, bundle.config, request)
        context.log(f"{folder} is complete; nothing left to do")
        return Fitted(bundle, None)
    run_folder = RunFolder(folder, folders=FOLDERS, files=WRITTEN, owner=group.rank == 0)
    try:
        with _stoppable(run_folder, started):
            return (_go_on if started else _begin)(request, run_folder, context)
    finally:
        run_folder.unlock()


def _begin(request: Request, run_folder: RunFolder, context: RunContext) -> Fitted:
    _unused(run_folder)
    run, data, parts = _new(request)
    config = _config(request, run, data, parts)
    transform, trainer = _trainer(run, data, parts, run_folder.folder, context)
    context.log(f"data: {data.source}")  # after all that can be wrong with the input: an error is one line
    config["run"]["transform"] = specs.plain(transform.to_dict())  # fitted, so that an unfinished run can be read
    context.group.assert_equal("data, settings or versions", lambda: json.dumps(config))

    context.group.on_rank0(run_folder.begin)

    def write() -> None:
        store.write_json(run_folder.folder / "config.json", config)

    try:
        context.group.on_rank0(write)
        return _train(config, run, data, transform, trainer)
    except ThalwegError as error:
        diverged = isinstance(error, Diverged) and (run_folder.folder / PLAN).exists()  # its log tells where
        if not diverged and not _has_checkpoint(run_folder.folder):
            run_folder.rollback()
        raise


def _go_on(request: Request, run_folder: RunFolder, context: RunContext) -> Fitted:
    folder = run_folder.folder
    context.group.on_rank0(run_folder.lock)
    config = read_config(folder)
    run = _stored(folder, config, request)
    plan = Plan.load(folder)
    if plan is not None:
        plan.require(context.group.size, folder)
    data = _read(run.data, run.seed)
    if data.fingerprint != config["data"]["fingerprint"]:
        raise _changed(folder, "data", data)
    if config["data"].get("labels") not in (None, data.label_fingerprint):
        raise _changed(folder, "labels", data)
    context.log(f"data: {data.source}")
    if not _has_checkpoint(folder):
        context.log(f"{folder} holds no checkpoint yet: it begins at step 0")
    try:
        transform, trainer = _trainer(run, data, build_parts(run, data), folder, context)
    except UserError as error:  # these values did build when the run began
        raise _damaged(folder, error) from error
    return _train(config, run, data, transform, trainer)


def _train(config: dict[str, Any], run: RunSettings, data: Dataset, transform: Any, trainer: Trainer) -> Fitted:
    folder, group = trainer.folder, trainer.group
    trainer.hooks = (Previews(run, data.kind, transform, folder, group),)
    energy = trainer.fit()
    group.on_rank0(lambda: _finish(config, energy, data, trainer))
    return Fitted(load_as(folder, Bundle) if group.rank else _as_loaded(folder, energy), data)


@contextmanager
def _stoppable(run_folder: RunFolder, started: bool) -> Iterator[None]:
    """Turn Ctrl-C, where the trainer does not catch it, into an error that says what there is to go on with."""
    folder = run_folder.folder
    try:
        yield
    except KeyboardInterrupt as stop:
        signum = getattr(stop, "signum", signal.SIGINT)
        if _has_checkpoint(folder):
            raise Interrupted(f"stopped; the newest checkpoint in {folder} is kept", signum) from stop
        if started:
            raise Interrupted(f"stopped before the first checkpoint; {folder} can go on", signum) from stop
        run_folder.rollback()
        raise NothingBegun(
            "stopped before the first checkpoint, nothing is kept; the same command starts anew", signum
        ) from stop


def _has_checkpoint(folder: Path) -> bool:
    return any((folder / FOLDER).glob("step-*"))


def _unused(run_folder: RunFolder) -> None:
    """Refuse what a run has left in a folder without its config.json: a new run would take it for its own."""
    left = [name for name in (PLAN, store.MANIFEST) if name in run_folder.before]
    left += [FOLDER] if _has_checkpoint(run_folder.folder) else []
    if left:
        path = str(run_folder.folder / left[0])
        raise UserError("left by a run whose config.json is gone", argument=path, hint="move it away")


def _changed(folder: Path, what: str, data: Dataset) -> UserError:
    text = f"the {what} have changed since the run began ({data.source})"
    return UserError(text, argument=str(folder), hint="put back those it began with")


def _stored(folder: Path, config: dict[str, Any], request: Request) -> RunSettings:
    """The run that a folder's config.json describes, once it is seen to be the one that is asked for."""
    try:
        run = stored(config)
    except UserError as error:
        raise _damaged(folder, error) from error
    compare(request, {**config, "run": run.model_dump(mode="json")}, folder)
    return run


def _damaged(folder: Path, error: UserError) -> DamagedFile:
    hint = "put back the file that the run wrote, or start another run"
    return DamagedFile(str(error), argument=str(folder / "config.json"), hint=hint)


def settings(request: Request, kind: str) -> RunSettings:
    """The validated run that a request describes on data of a kind ("image", "vector")."""
    return validate(run_tree(request, kind, TrainSettings.model_validate({}).model_dump()))


def _read(data: DataSettings, seed: int) -> Dataset:
    return load_data(
        data.name,
        data=data.path,
        hub=data.hub,
        seed=seed,
        held_out=data.held_out,
        limit=data.limit,
        header=data.header,
        drop=data.drop,
    )


def _new(request: Request) -> tuple[RunSettings, Dataset, Parts]:
    data = _read(checked(DataSettings, data_tree(request), "data"), request.seed or 0)
    run = settings(request, data.kind)
    parts = build_parts(run, data)
    check_parts(parts, run, data)
    return run, data, parts


def _config(request: Request, run: RunSettings, data: Dataset, parts: Parts) -> dict[str, Any]:
    """What config.json says of a new run."""
    return {
        **heading(Bundle),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "command": request.command,
        "normalised": bool(parts.objective.normalises and isinstance(parts.energy, HasNoiseLevels)),
        **origin(request, data.kind),
        "data": {
            "source": data.source,
            "fingerprint": data.fingerprint,
            "labels": data.label_fingerprint if getattr(parts.energy, "num_classes", None) else None,
            "kind": data.kind,
            "shape": list(data.shape),
            "dtype": str(data.train.dtype).removeprefix("torch."),
            "columns": data.layout.names,
            "ignored": list(data.layout.ignored),
            "encoding": data.layout.to_list(),
            "num_train": len(data.train),
            "num_held_out": len(data.held_out),
        },
        "run": specs.plain(run.model_dump()),
    }


def _trainer(run: RunSettings, data: Dataset, parts: Parts, folder: Path, context: RunContext) -> tuple[Any, Trainer]:
    group = context.group
    transform = fit_to_data(parts, run, data)
    trainer = Trainer(
        energy=parts.energy,
        objective=parts.objective,
        loader=Loader(
            data.train,
            data.train_labels,
            batch_size=run.train.batch_size,
            seed=run.seed,
            rank=group.rank,
            world_size=group.size,
        ),
        transform=transform,
        settings=run.train,
        folder=folder,
        seed=run.seed,
        progress=context.progress,
        tensorboard=context.tensorboard,
        augment=parts.augment,
        group=group,
    )
    return transform, trainer


def _finish(config: dict[str, Any], energy: nn.Module, data: Dataset, trainer: Trainer) -> None:
    """Calibrate the averaged energy, on as many threads as it was trained on, and write the bundle."""
    folder, plan, state = trainer.folder, Plan.load(trainer.folder), trainer.state
    config = {
        **config,
        "precision": plan.precision if plan else "fp32",
        "training": {
            "steps": state.step,
            "seconds": round(state.seconds, 1),
            "rollbacks": state.guard.rollbacks,
        },
    }
    with num_threads(plan.threads if plan else torch.get_num_threads()):
        bundle = Bundle(config, energy, None, folder)
        if bundle.num_classes and data.held_out_labels is not None:
            config["classes"] = calibrate(bundle, as_float(data.held_out), data.held_out_labels)
        held_out = bundle.energy(as_float(data.held_out))
        write_bundle(folder, config, energy.state_dict(), held_out, fit_mixture_prior(bundle, data.train))
    store.write_bytes(folder / "card.md", card(config).encode("utf-8", "backslashreplace"))


def _as_loaded(folder: Path, energy: nn.Module) -> Bundle:
    """The bundle in a folder, its network this one, whose weights were just written there."""
    held_out = store.read_tensors(folder / "calibration.safetensors")["energy"].to(torch.float32)
    bundle = Bundle(read_config(folder), energy, held_out, folder)
    bundle.mixture_prior = read_mixture_prior(folder / "prior.safetensors", bundle.shape)
    return bundle
