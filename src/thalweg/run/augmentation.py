"""Which augmentation a run takes, where its recipe leaves that to the images."""

from typing import Any

import torch

from thalweg.core import config as specs
from thalweg.core.config import type_name
from thalweg.core.rng import generator
from thalweg.core.spec_of import spec_of
from thalweg.data.augment import ByKind
from thalweg.data.catalog import Dataset, as_float
from thalweg.data.image_kind import MOST_ROWS
from thalweg.training.settings import RunSettings

BY_KIND = type_name(ByKind)


def resolved(run: RunSettings, data: Dataset) -> tuple[RunSettings, str | None]:
    """The run with the augmentation that suits its training images in place of `ByKind`, and one line that says which.

    The line is None where the run names its augmentation, or has none.
    """
    if run.augment is None or run.augment.get("type") != BY_KIND or data.kind != "image":  # which others refuse
        return run, None
    by_kind = specs.build(run.augment, "augment")
    some = torch.randperm(len(data.train), generator=generator(run.seed, "augment-by-kind"))[:MOST_ROWS]
    choice, why = by_kind.choose(as_float(data.train[some]))
    spec: dict[str, Any] | None = None
    if choice is not None:
        spec = run.augment.get(choice) or spec_of(getattr(by_kind, choice))
    name = "none" if spec is None else str(spec["type"]).partition(":")[2]
    return run.model_copy(update={"augment": spec}), f"augmentation: {name}, as {why}"
