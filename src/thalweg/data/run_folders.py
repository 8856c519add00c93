"""Folders that this package itself wrote, which are given as data by mistake."""

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

from thalweg.core import store
from thalweg.core.errors import DamagedFile, UserError

CONFIG = "config.json"
RUN = "thalweg.bundle.bundle:Bundle"  # the `type` of what `thalweg train` leaves


def looks_like_run(names: Collection[str]) -> bool:
    """Whether a folder with these names in it is one of a run or a stored model, as far as names tell."""
    return CONFIG in names and not {store.MANIFEST, "checkpoints"}.isdisjoint(names)


def refuse_run(path: Path) -> None:
    """UserError where a path is the folder of a run or of another stored model, which holds no rows."""
    if not path.is_dir() or not looks_like_run({each.name for each in path.iterdir()}):
        return
    try:
        config = store.read_json(path / CONFIG)
    except (DamagedFile, OSError):
        return
    if not isinstance(config, dict) or not isinstance(config.get("type"), str) or "thalweg" not in config:
        return
    if config["type"] != RUN:
        text = f"must be data, and is the folder of a trained model ({config['type'].rpartition(':')[2]})"
        raise UserError(text, argument=str(path), hint="give the file or the folder of rows")
    folder = shlex.quote(str(path))
    hint = (
        f"`thalweg train {_data_of(config)} -o {folder} --resume` goes on with one that was stopped, "
        f"`thalweg sample {folder} -n 64` draws from it"
    )
    raise UserError("must be data, and is the folder of a run", argument=str(path), hint=hint)


def _data_of(config: dict[str, Any]) -> str:
    """The data that a run names, as a word of a command."""
    data = config.get("run")
    for key in ("data", "name"):
        data = data.get(key) if isinstance(data, dict) else None
    return shlex.quote(data) if isinstance(data, str) else "DATA"
