"""`thalweg.train`: an energy from data in one call, and the report of a run."""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.bundle.bundle import Bundle
from thalweg.core.config import class_at
from thalweg.core.device import find_device
from thalweg.core.errors import UserError, kind_of
from thalweg.core.progress import Bar
from thalweg.core.spec_of import spec_of
from thalweg.core.trust import trusting
from thalweg.data.catalog import Dataset, as_float
from thalweg.data.in_memory import NAME, given_dataset, is_in_memory
from thalweg.data.transform import Transform
from thalweg.objective.base import HasSampler, Objective
from thalweg.run.fit import Request, fit_with_data
from thalweg.run.given import Given, built_energy, with_prior
from thalweg.run.in_memory import fit_in_memory
from thalweg.sampler.base import Sampler

LEAST_HELD_OUT = 20  # rows for a report


def train(
    energy: nn.Module | functools.partial[nn.Module] | type[nn.Module] | str | os.PathLike[str],
    data: Any,
    *,
    objective: Objective[Any] | None = None,
    sampler: Sampler[Any] | None = None,
    labels: Any = None,
    steps: int | None = None,
    minutes: float | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    device: str | torch.device = "auto",
    seed: int = 0,
    held_out: Any = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    report: bool = False,
    transform: Transform | None = None,
    trust: Sequence[str] = (),
) -> Bundle:
    """Train an energy on data; the bundle, which samples, scores and is stored.

    A network sees the data in model units: columns standardised, pixels in [0, 1]. It is trained in place, and the
    bundle has the average of its weights. Rows must not see each other.

    Args:
        energy: A network E(x), (B, *) to (B,), or U(y, t), (B, *) and noise variances (B,) to (B,), told apart by its
            `forward`; a class or a `functools.partial` that builds one; or the name of a recipe ("dual", "pcd", …).
        data: Rows (N, D) or images (N, C, H, W): a tensor, an array, a frame, a map-style data set of torch, a path, or
            a name of the catalog, such as "mnist".
        objective: The loss. None: that of the recipe; contrastive divergence for E(x), dual score matching for an
            energy from `thalweg.anchored`, denoising score matching for another U(y, t).
        sampler: What `bundle.sample` draws by. None: the objective's, or the recipe's.
        labels: Whole numbers (N,), for objectives that learn classes, where `data` are rows.
        steps: Number of steps.
        minutes: Time to train, turned into steps at the start. Without either: ten minutes.
        out: A run folder, with checkpoints, log and bundle. None: nothing is written.
        resume: Go on with the run in `out`; the same arguments give the same bits as without an interruption.
        device: "auto" (THALWEG_DEVICE, else a GPU, else the CPU), "cpu", "cuda" or "cuda:N".
        seed: Of all randomness.
        held_out: The share of rows to hold out, or the rows themselves.
        settings: The recipe's values under `train`, such as {"batch_size": 32, "guard": {"policy": "stop"}}.
        progress: Whether a bar is shown on standard error.
        report: Whether report.html and evaluation.json are written to `out`.
        transform: From data units to model units, such as `thalweg.data.transform.Identity()`.
        trust: Packages whose classes a recipe may name.

    Raises:
        UserError: Bad data, a network that cannot be trained, settings that do not exist, a folder in use.
        Diverged: The guard has given up. With `out` the last good checkpoint is kept.
        Interrupted: Stopped by a signal, with `out`; the run goes on by `resume=True`.
    """
    _check_folder(out, resume, report)
    find_device(device)
    if is_in_memory(data):
        rows: Dataset | None = given_dataset(data, labels, held_out=held_out, seed=seed)
    else:
        rows = None
        _require_none(labels, "labels", "as data with a name bring their own")
        _require_share(held_out)
    with trusting(*trust):
        given = _given(energy, rows, data, objective, sampler, transform, seed)
        request = Request(
            data=data if rows is None else NAME,
            recipe=None if given.energy is not None else os.fspath(energy),  # pyright: ignore[reportArgumentType]
            minutes=minutes,
            steps=steps,
            seed=seed,
            overrides=[*_overrides("train", settings), *_share_override(held_out, rows)],
            command="thalweg.train(…)",
            given=given,
        )
        if out is None:
            return fit_in_memory(request, progress=Bar(None) if progress else None, device=device)
        folder = Path(out)
        bar = Bar(folder) if progress else None
        bundle, read = fit_with_data(request, folder, resume=resume, progress=bar, device=device)
        if report and not (folder / "report.html").exists():
            evaluate_run(bundle, folder, num_samples=1000, seed=seed, data=read or rows)
    return bundle


def evaluate_run(
    bundle: Bundle, folder: Path, *, num_samples: int, seed: int, data: Dataset | None = None
) -> dict[str, Any]:
    """Figures of a run, written with the report to its folder; `data` where the run's were read already."""
    from thalweg.apps.landscape.picture_files import of_report
    from thalweg.bundle.dataset import data_of
    from thalweg.bundle.inputs import in_float32
    from thalweg.evaluate.report import write_figures, write_report
    from thalweg.evaluate.suite import evaluate_bundle
    from thalweg.training.metrics_log import read_metrics

    data = data_of(bundle) if data is None else data
    if len(data.held_out) < LEAST_HELD_OUT:
        few = f"must have {LEAST_HELD_OUT} held-out rows or more, and has {len(data.held_out)}"
        raise UserError(few, argument=str(folder), hint="train on more data")
    bundle, _, (rows, held_out) = in_float32(bundle, as_float(data.train[:10_000]), as_float(data.held_out))
    figures, pictures = evaluate_bundle(
        bundle,
        train=rows,
        held_out=held_out,
        held_out_labels=data.held_out_labels,
        history=read_metrics(folder),
        num_samples=num_samples,
        seed=seed,
    )
    write_figures(folder / "evaluation.json", figures)
    write_report(
        folder / "report.html",
        title=f"An energy of {bundle.config['run']['data']['name']}",
        command=bundle.config["command"] or "thalweg.run.fit.fit(…)",
        figures=figures,
        pictures=pictures | of_report(bundle, held_out, data.held_out_labels, seed=seed),
        data=data.source,
    )
    return figures
