"""The classes of a joint energy E(x, y): its scores, the check of labels, and energies of given classes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thalweg.core import check
from thalweg.core.errors import DamagedFile, UserError
from thalweg.energy.base import Classifier
from thalweg.energy.engine.discovery import device_of
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.engine.fused import keep_memory
from thalweg.energy.wrappers import ClassifierGuidance

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle

BLOCK = 250
SHOWN = 12  # names of classes in a message


def class_names(bundle: "Bundle") -> list[str]:
    """The names of classes 0 … K - 1 as the data gave them, else the numbers; DamagedFile where they are not K."""
    names = bundle.config.get("data", {}).get("classes")
    if names is None:
        return [str(label) for label in range(bundle.num_classes)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DamagedFile("must be a list of texts", argument=f"{bundle.path / 'config.json'}, data.classes")
    rest = range(len(names), bundle.num_classes)  # where energy.num_classes was given, and is more
    return [*names[: bundle.num_classes], *map(str, rest)]


def numbers_of(bundle: "Bundle", words: Sequence[str], argument: str = "labels") -> list[int]:
    """The numbers of classes by their names, or by their numbers where these are no names; UserError, about
    `argument`, for others."""
    if words and not bundle.num_classes:
        raise _without_classes(list(words), argument)
    return numbers_among(class_names(bundle), words, argument)


def numbers_among(names: Sequence[str], words: Sequence[str], argument: str = "labels") -> list[int]:
    """`numbers_of` where the classes have these names, one or more."""
    known = {**{str(number): number for number in range(len(names))}, **{name: i for i, name in enumerate(names)}}
    wrong = next((word for word in words if word not in known), None)
    if wrong is not None:
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        raise UserError("must be a class of the model", argument=argument, value=wrong, hint=f"there are: {shown}")
    return [known[word] for word in words]


def require_classes(bundle: "Bundle") -> None:
    """UserError for a model without classes."""
    if not bundle.num_classes:
        hint = "train one on labelled data with --recipe jem"
        raise UserError("the model has no classes", argument=str(bundle.path), hint=hint)


def _without_classes(labels: Any, argument: str = "labels") -> UserError:
    what, hint = "is for models with classes, and this one has none", "leave it out, or train with --recipe jem"
    return UserError(what, argument=argument, value=labels, hint=hint)


def check_labels(bundle: "Bundle", labels: Any, n: int) -> Int[Tensor, " n"]:
    """n labels in 0 … K - 1, from n whole numbers or names of classes, or one; UserError for anything else."""
    if not bundle.num_classes:
        raise _without_classes(labels)
    words = [labels] if isinstance(labels, str) else labels
    if isinstance(words, list | tuple) and words and all(isinstance(word, str) for word in words):
        numbers = numbers_of(bundle, words)
        labels = numbers[0] if isinstance(labels, str) else numbers
    try:
        given = labels if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
        whole = not given.is_floating_point() and not given.is_complex() and given.dtype != torch.bool
    except (TypeError, ValueError):
        given, whole = torch.empty(0), False
    if not whole or given.ndim > 1 or (given.ndim == 1 and len(given) != n):
        raise UserError(f"must be {n} whole numbers, or one for all", argument="labels", value=labels)
    given = given.long().expand(n) if given.ndim == 0 else given.long()
    outside = (given < 0) | (given >= bundle.num_classes)
    if bool(outside.any()):
        wrong, last = int(given[outside][0]), bundle.num_classes - 1
        raise UserError(f"must be classes of the model, 0 to {last}", argument="labels", value=wrong)
    return given


def of_classes(
    model: nn.Module, labels: Int[Tensor, " n"], strength: float
) -> Callable[[int, int], ClassifierGuidance]:
    """The energy of rows start … stop - 1, each of its own class; UserError for a strength that is not positive."""
    check.positive(strength=strength)
    check.finite(strength=strength)
    labels = labels.to(device_of(model))
    return lambda start, stop: ClassifierGuidance(model, labels[start:stop], float(strength))  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def scores_of(bundle: "Bundle", x: Tensor) -> Float[Tensor, "n k"]:
    """The calibrated scores (N, K) whose softmax is p(label | x); x in data units, and they lie where it does."""
    keep_memory()
    with frozen(bundle.model) as model:
        assert isinstance(model, Classifier)  # asked for by whoever calls
        return torch.cat([model.logits(bundle.encode(part)) for part in x.split(BLOCK)]).to(x.device)
