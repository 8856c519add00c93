"""The data of a run: read as its config says, and read again for a bundle, then checked to be the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thalweg.bundle.bundle import Bundle
from thalweg.bundle.from_config import given_parts
from thalweg.core.config import names_class
from thalweg.core.errors import UserError
from thalweg.data.catalog import Dataset, load
from thalweg.data.options import DataOptions
from thalweg.data.sets.base import named_sets
from thalweg.data.stored.hub import PREFIX


def read_dataset(spec: Mapping[str, Any], seed: int) -> Dataset:
    """The data set that the section `data` of a run describes; `seed` splits it."""
    return load(spec["name"], DataOptions.of(spec), seed=seed)


def data_of(bundle: Bundle) -> Dataset:
    """The run's data set, split as in its training. UserError where the data cannot be found or have changed."""
    run = bundle.config["run"]
    if "data" in given_parts(bundle.config):
        text = "must be a run on data that have a name; it was trained on rows in memory"
        raise UserError(text, argument=str(bundle.path), hint="give the rows, as by thalweg.train(…, report=True)")
    _require_there(bundle, run["data"])
    data = read_dataset(run["data"], run["seed"])
    if data.fingerprint != bundle.config["data"]["fingerprint"]:
        files = data.files and data.files.changes(bundle.path)
        how = f" (files {files})" if files else ""
        text = f"must be the data that the run was trained on, and {data.source} has changed since{how}"
        raise UserError(text, argument=str(bundle.path), hint="put back the old data")
    return data


def _require_there(bundle: Bundle, spec: Mapping[str, Any]) -> None:
    """UserError for a run on a file or folder that is gone: it is no misspelt name."""
    name, path = spec["name"], spec["path"]
    known = name.startswith(PREFIX) or name in named_sets() or names_class(name)
    gone = path if path is not None and not Path(path).exists() else name
    if Path(gone).exists() or (gone == name and known):
        return
    hint = "put them back, or run this from the folder in which the run was trained"
    raise UserError(f"must be a run whose data are there; {gone} is not", argument=str(bundle.path), hint=hint)
