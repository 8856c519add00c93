"""The config.json of a run: what it says of a new run, and whether a request asks for the run that it describes."""

import platform
from pathlib import Path
from typing import Any

import torch

from thalweg.bundle.bundle import Bundle
from thalweg.bundle.files import heading
from thalweg.core import config as specs
from thalweg.core.errors import DamagedFile, NotTrusted, UserError
from thalweg.data.catalog import Dataset
from thalweg.energy.base import Anchored, Classifier, HasNoiseLevels, Normalised
from thalweg.energy.outcomes import Conditional
from thalweg.objective.base import LearnsConstant
from thalweg.run.checks import Parts
from thalweg.run.request import Request, compare, origin
from thalweg.training.settings import RunSettings, stored


def new_config(request: Request, run: RunSettings, data: Dataset, parts: Parts) -> dict[str, Any]:
    """What config.json says of a run that begins; `run.transform` is still to be replaced by the fitted one."""
    return {
        **heading(Bundle),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "command": request.command,
        "normalised": normalised(parts),
        **({} if parts.chosen is None else {"chosen": parts.chosen}),
        **origin(request, data.kind),
        "data": {
            "source": data.source,
            "fingerprint": data.fingerprint,
            "labels": data.label_fingerprint if isinstance(parts.energy, Classifier) else None,
            "kind": data.kind,
            "shape": list(data.shape),
            "dtype": str(data.train.dtype).removeprefix("torch."),
            "columns": data.layout.names,
            "ignored": list(data.layout.ignored),
            "encoding": data.layout.to_list(),
            **({} if data.alphabet is None else {"alphabet": data.alphabet.to_dict()}),
            **({"classes": list(data.class_names)} if data.class_names else {}),
            "num_train": len(data.train),
            "num_held_out": len(data.held_out),
        },
        "run": specs.plain(run.model_dump()),
    }


def normalised(parts: Parts) -> bool:
    """Whether -E is log p: the energy is so built, its constant is learned, or the law at the highest level fixes it.

    That of a conditional energy is log p(y | x), where y can be counted.
    """
    if isinstance(parts.energy, Conditional):
        return parts.energy.outcomes.enumerable
    if isinstance(parts.energy, Normalised) and parts.energy.normalised:
        return True
    objective = parts.objective
    alone = isinstance(objective, LearnsConstant) and objective.learns_constant
    known = isinstance(parts.energy, HasNoiseLevels) and isinstance(parts.energy, Anchored)
    return bool(objective.normalises and (alone or known))


def stored_run(folder: Path, config: dict[str, Any], request: Request) -> RunSettings:
    """The run that a folder's config.json describes; UserError where the request asks for another one."""
    try:
        run = stored(config)
    except NotTrusted:
        raise
    except UserError as error:
        raise damaged(folder, error) from error
    compare(request, {**config, "run": run.model_dump(mode="json")}, folder)
    if request.skip_bad and not run.data.skip_bad:  # the same rows, but where one turns out to be damaged
        return run.model_copy(update={"data": run.data.model_copy(update={"skip_bad": True})})
    return run


def require_same_data(folder: Path, config: dict[str, Any], data: Dataset) -> None:
    """UserError unless the data are those that the run began with."""
    began = config["data"]
    same = {"data": data.fingerprint == began["fingerprint"]}
    same["labels"] = began.get("labels") in (None, data.label_fingerprint)
    for what, unchanged in same.items():
        if not unchanged:
            files = data.files and data.files.changes(folder)
            how = f"{data.source}; files {files}" if files else data.source
            text = f"must have the {what} that the run began with, and they have changed ({how})"
            raise UserError(text, argument=str(folder), hint="put back the old ones")


def damaged(folder: Path, error: UserError) -> DamagedFile:
    """An error of the values in a folder's config.json: that file is damaged."""
    hint = "put back the file that the run wrote, or start another run"
    return DamagedFile(str(error), argument=str(folder / "config.json"), hint=hint)
