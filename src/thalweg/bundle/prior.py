"""The mixture of factor analysers of a bundle's data: in-painting starts from it and ranks completions by it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from thalweg.core import config as specs
from thalweg.core import store
from thalweg.core.errors import DamagedFile
from thalweg.core.rng import generator
from thalweg.data.stored_rows import StoredRows, some_rows
from thalweg.data.validate import as_float
from thalweg.energy.density.factor_mixture import NUMBERS, MixtureOfFactorAnalyzers, evenly_spaced_rows, most_rows

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle

COPIES, ROWS = 4, 25_000  # altered copies of each row, at most, and rows with them; of 55,000 digits none is needed


def fit_mixture_prior(bundle: "Bundle", train: Tensor | StoredRows) -> MixtureOfFactorAnalyzers:
    """Fitted on the CPU to some training rows (N, *shape) in stored units, and to altered copies of a small set.

    The copies are those that the network learned from (the run's `augment`): they buy components, of which 4,500 digits
    alone support few.
    """
    run = bundle.config["run"]
    some = some_rows(train, most_rows(train.shape)) if isinstance(train, StoredRows) else evenly_spaced_rows(train)
    rows = _with_copies(as_float(some.cpu()), run)
    return MixtureOfFactorAnalyzers.fit(bundle.transform.forward(rows), seed=run["seed"]).to(bundle.device)


def _with_copies(x: Float[Tensor, "n *d"], run: dict[str, Any]) -> Float[Tensor, "m *d"]:
    rows = min(ROWS, NUMBERS // x[0].numel())
    copies = min(COPIES, rows // len(x) - 1) if run.get("augment") else 0
    if copies < 1:
        return x
    alter = specs.build(run["augment"])
    return torch.cat([x, *(alter(x, generator(run["seed"], "guess", k), 0.0) for k in range(copies))])


def read_mixture_prior(path: Path, shape: tuple[int, ...]) -> MixtureOfFactorAnalyzers:
    """The mixture in prior.safetensors; DamagedFile where that is none of data of this shape."""
    try:
        return MixtureOfFactorAnalyzers(shape, **store.read_tensors(path))
    except (KeyError, ValueError, TypeError, IndexError) as error:
        text = f"must hold a mixture of these data ({error})"
        raise DamagedFile(text, argument=str(path), hint="train again") from error
