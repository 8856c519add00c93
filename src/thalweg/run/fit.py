"""From a recipe to a bundle: training in a run folder.

A run folder comes into being with `config.json`, grows by checkpoints, metrics and previews, and becomes a bundle when
its manifest is written at the end. Killed at any moment before, it resumes. Of several processes, started by torchrun,
rank 0 alone writes.
"""

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from thalweg.bundle.bundle import Bundle
from thalweg.bundle.dataset import read_dataset
from thalweg.bundle.files import FILES, load_as, read_config
from thalweg.core import config as specs
from thalweg.core import store
from thalweg.core.check import fits_memory
from thalweg.core.device import find_device, of_process
from thalweg.core.errors import Diverged, StopSignal, ThalwegError, UserError
from thalweg.data import file_digests
from thalweg.data.catalog import Dataset, refuse_both
from thalweg.data.float32_check import Float32Transform
from thalweg.data.loader import Loader
from thalweg.data.options import DataOptions
from thalweg.energy.base import Anchored
from thalweg.energy.density.stationary import RecordsChoice
from thalweg.run.augmentation import resolved
from thalweg.run.checks import Parts, build_parts, check_parts, fit_to_data
from thalweg.run.finish import as_loaded, finish
from thalweg.run.monitoring import run_monitor
from thalweg.run.preview import Previews
from thalweg.run.request import Request, data_tree, require_same_energy, run_tree
from thalweg.run.run_config import damaged, new_config, require_same_data, stored_run
from thalweg.run.run_folder import RunFolder
from thalweg.sampler.base import Sampler
from thalweg.training.distributed import ProcessGroup, SingleProcess, joined
from thalweg.training.metrics_log import NAME as METRICS
from thalweg.training.metrics_log import Progress
from thalweg.training.plan import NAME as PLAN
from thalweg.training.plan import Plan
from thalweg.training.settings import DataSettings, RunSettings, TrainSettings, checked, validate
from thalweg.training.state import FOLDER
from thalweg.training.step import UnreadableRows
from thalweg.training.trainer import Interrupted, Trainer

__all__ = ["Fitted", "NothingBegun", "Request", "fit", "fit_with_data", "settings"]

logger = logging.getLogger("thalweg")
FIRST = "step-00000000"  # a checkpoint of the first weights, where a network is given: nothing is lost with it
FOLDERS = (FOLDER, "tensorboard", "monitor", "judge")
WRITTEN = (
    *FILES,
    PLAN,
    METRICS,
    file_digests.NAME,
    "preview.png",
    "preview.txt",
    "monitor.jsonl",
    "card.md",
    "evaluation.json",
    "opinion.json",
    "opinion.png",
    "report.html",
    store.MANIFEST,
)


class Fitted(NamedTuple):
    """What a run leaves. `data`: what it was trained on; None where the run was complete before and none were read."""

    bundle: Bundle
    data: Dataset | None


class RunContext(NamedTuple):
    """Which processes work on a run, where it is computed, and where it reports: `log` takes lines for people."""

    group: SingleProcess | ProcessGroup
    progress: Progress | None
    log: Callable[[str], None]
    tensorboard: bool
    device: torch.device


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
        raise UserError("must be given alone, not with minutes", argument="steps", hint="give one of them")
    with joined() as group:
        if group.rank:
            progress, log = None, logger.info
        try:
            device = of_process(find_device(request.device))
            return _fit(request, folder, resume, RunContext(group, progress, log, tensorboard, device))
        except (Interrupted, Diverged, UnreadableRows) as error:
            error.already_reported = group.rank > 0  # rank 0 tells it
            raise


def _fit(request: Request, folder: Path, resume: bool, context: RunContext) -> Fitted:
    group = context.group
    started = group.broadcast(lambda: os.path.isfile(folder / "config.json"))
    if started and not resume:
        hint = "add --resume to go on with it, or name another folder with -o"
        raise UserError("must not hold a run yet", argument=str(folder), hint=hint)
    if started and group.broadcast((folder / store.MANIFEST).is_file):
        stored_run(folder, read_config(folder), request)
        bundle = load_as(folder, Bundle, energy=request.given.energy, device=context.device)
        context.log(f"{folder} is complete; nothing left to do")
        return Fitted(bundle, None)
    if not started and os.path.isdir(request.data) and os.path.realpath(request.data) == os.path.realpath(folder):
        text, hint = "must not be the folder of the data, among which a run would write", "name another one with -o"
        raise UserError(text, argument=str(folder), hint=hint)
    run_folder = RunFolder(folder, folders=FOLDERS, files=WRITTEN, owner=group.rank == 0)
    try:
        with _stoppable(run_folder, started):
            return (_go_on if started else _begin)(request, run_folder, context)
    finally:
        run_folder.unlock()


def _begin(request: Request, run_folder: RunFolder, context: RunContext) -> Fitted:
    _unused(run_folder)
    request, run, data, parts = prepared(request)
    config = new_config(request, run, data, parts)
    transform, trainer = _trainer(run, data, parts, run_folder.folder, context)
    _tell(data, context)  # after all that can be wrong with the input: an error is one line
    if parts.chosen is not None:
        context.log(parts.chosen)
    config |= _anchor_choice(parts.energy, context)
    config["run"]["transform"] = specs.plain(transform.to_dict())  # fitted, so that an unfinished run can be read
    context.group.assert_equal("data, settings or versions", lambda: json.dumps(config))

    context.group.on_rank0(run_folder.begin)

    try:
        context.group.on_rank0(lambda: store.write_json(run_folder.folder / "config.json", config))
        if data.files is not None:
            context.group.on_rank0(lambda: data.files and data.files.write(run_folder.folder))
        if request.given.energy is not None:
            trainer.save()  # its first weights are the caller's, not the seed's
        return _train(config, data, parts.sampler, transform, trainer)
    except ThalwegError as error:
        diverged = isinstance(error, Diverged) and (run_folder.folder / PLAN).exists()  # its log tells where
        if not diverged and not _has_checkpoint(run_folder.folder):
            run_folder.rollback()
        raise


def _go_on(request: Request, run_folder: RunFolder, context: RunContext) -> Fitted:
    folder = run_folder.folder
    context.group.on_rank0(run_folder.lock)
    config = read_config(folder)
    run = stored_run(folder, config, request)
    plan = Plan.load(folder)
    if plan is not None:
        plan.require(context.group.size, folder)
    data = request.given.data or read_dataset(run.data.model_dump(), run.seed)
    require_same_data(folder, config, data)
    if run.data.skip_bad != config["run"]["data"].get("skip_bad", False):
        config["run"]["data"]["skip_bad"] = run.data.skip_bad
        context.group.on_rank0(lambda: store.write_json(folder / "config.json", config))
    _tell(data, context)
    if not _has_checkpoint(folder):
        context.log(f"{folder} holds no checkpoint yet: it begins at step 0")
    request = replace(request, given=request.given.of_data(data, run.seed))
    require_same_energy(request, config, folder)
    try:
        parts = build_parts(run, data, request.given)
        transform, trainer = _trainer(run, data, parts, folder, context)
    except UserError as error:  # these values did build when the run began
        raise damaged(folder, error) from error
    return _train(config, data, parts.sampler, transform, trainer)


def _tell(data: Dataset, context: RunContext) -> None:
    """Which data these are, and how they were read."""
    for line in (f"data: {data.source}", *data.notes):
        context.log(line)
    if data.layout.told is not None:
        context.log(data.layout.told)


def _train(
    config: dict[str, Any], data: Dataset, sampler: Sampler[Any], transform: Float32Transform, trainer: Trainer
) -> Fitted:
    folder, group = trainer.folder, trainer.group
    trainer.hooks = (Previews(sampler, data, transform, folder, group, trainer.update.objective),)
    energy = trainer.fit()
    group.on_rank0(lambda: finish(config, energy, data, sampler, trainer))
    return Fitted(as_loaded(folder, energy, sampler), data)


@contextmanager
def _stoppable(run_folder: RunFolder, started: bool) -> Iterator[None]:
    """Turn Ctrl-C, where the trainer does not catch it, into an error that says what there is to go on with."""
    folder = run_folder.folder
    try:
        yield
    except KeyboardInterrupt as stop:
        signum = stop.signum if isinstance(stop, StopSignal) else signal.SIGINT
        if _has_checkpoint(folder):
            raise Interrupted(f"stopped; the newest checkpoint in {folder} is kept", signum) from stop
        if started:
            raise Interrupted(f"stopped before the first checkpoint; {folder} can go on", signum) from stop
        run_folder.rollback()
        raise NothingBegun(
            "stopped before the first checkpoint, nothing is kept; the same command starts anew", signum
        ) from stop


def _anchor_choice(energy: nn.Module, context: RunContext) -> dict[str, Any]:
    """What config.json keeps of the choice of a covariance for the anchor, if there was one; it is told too."""
    choice = energy.anchor.choice if isinstance(energy, Anchored) and isinstance(energy.anchor, RecordsChoice) else None
    if choice is None:
        return {}
    context.log(f"anchor: {choice['covariance']} ({choice['nats_per_number'][str(choice['share'])]} nats a number)")
    return {"anchor": dict(choice)}


def _has_checkpoint(folder: Path) -> bool:
    return any(path.name > FIRST for path in (folder / FOLDER).glob("step-*"))


def _unused(run_folder: RunFolder) -> None:
    """Refuse a folder with files of a run's names and no config.json, which a run would overwrite, or with others."""
    left = [name for name in WRITTEN if name in run_folder.before]
    left += [FOLDER] if _has_checkpoint(run_folder.folder) else []
    if left:
        text, path = "must not be there yet, as a run writes its own", run_folder.folder / left[0]
        raise UserError(text, argument=str(path), hint="move it away, or name another folder")
    if foreign := run_folder.files_of_others():
        text, path = f"must be new, empty or hold a run, and holds {foreign[0]!r}", run_folder.folder
        raise UserError(text, argument=str(path), hint="name another folder with -o")


def settings(request: Request, kind: str, num_classes: int | None = None) -> RunSettings:
    """The validated run that a request describes on data of a kind ("image", "vector", "text").

    `num_classes`: that of the data's labels, which the energy's follows where no override says otherwise.
    """
    tree = run_tree(request, kind, TrainSettings.model_validate({}).model_dump(), num_classes)
    return validate(tree, given=request.given.names)


def prepared(request: Request) -> tuple[Request, RunSettings, Dataset, Parts]:
    """The data of a new run, its settings and its parts, checked; the request with an energy that fits the data."""
    spec = checked(DataSettings, data_tree(request), "data").model_dump()
    if request.given.data is None:
        refuse_both(spec["name"], DataOptions.of(spec))
    data = request.given.data or read_dataset(spec, request.seed or 0)
    request = replace(request, given=request.given.of_data(data, request.seed or 0))
    run = settings(request, data.kind, data.num_classes)
    data = _with_classes_told(request, run, data)
    try:
        fits_memory(run.train.batch_size, data.energy_shape)
    except UserError as error:
        raise error.replace(argument="train.batch_size", hint="take fewer rows") from error
    run, chosen = resolved(run, data)
    parts = build_parts(run, data, request.given)._replace(chosen=chosen)
    check_parts(parts, run, data)
    return request, run, data, parts


def _with_classes_told(request: Request, run: RunSettings, data: Dataset) -> Dataset:
    """The data, with a line where the number of classes is not the recipe's."""
    if request.given.energy is not None:
        return data
    before = settings(request, data.kind).energy.get("num_classes")
    now = run.energy.get("num_classes")
    if before == now:
        return data
    line = f"energy.num_classes is {now}, as many as the data have; the recipe says {before}"
    return replace(data, notes=(*data.notes, line))


def _trainer(
    run: RunSettings, data: Dataset, parts: Parts, folder: Path, context: RunContext
) -> tuple[Float32Transform, Trainer]:
    group = context.group
    transform = fit_to_data(parts, data)
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
            workers=run.data.workers,
        ),
        transform=transform,
        settings=run.train,
        folder=folder,
        seed=run.seed,
        progress=context.progress,
        tensorboard=context.tensorboard,
        augment=parts.augment,
        group=group,
        device=context.device,
        signals=run_monitor(run, data, parts, transform, folder),
    )
    return transform, trainer
