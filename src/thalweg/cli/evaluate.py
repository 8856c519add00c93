"""The command `thalweg evaluate`, and the report of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli import console
from thalweg.cli.options import Device, Json, Run, Seed, Trust

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle
    from thalweg.data.catalog import Dataset


EXAMPLE = "Example: `thalweg evaluate runs/digits`"


def evaluate(
    run: Run,
    num_samples: Annotated[
        int | None, typer.Option("-n", help="Samples to judge; 1,000 if not given, 100 of texts.", min=20)
    ] = None,
    log_z: Annotated[bool, typer.Option("--log-z", help="First estimate and store the energy's constant.")] = False,
    seed: Seed = 0,
    trust: Trust = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a bundle against held-out data and write report.html and evaluation.json."""
    from thalweg.bundle.bundle import Bundle
    from thalweg.bundle.files import load_as

    bundle = load_as(run, Bundle, device=device)
    if log_z:
        console.say("estimating the constant …")
        console.say(str(bundle.log_z(seed=seed)))
    figures = evaluate_run(bundle, bundle.path, num_samples=num_samples, seed=seed)
    console.say(f"report in {bundle.path / 'report.html'}")
    console.emit(figures, as_json)


def evaluate_run(
    bundle: "Bundle", folder: Path, *, num_samples: int | None, seed: int, data: "Dataset | None" = None
) -> dict[str, Any]:
    """Figures and report; `data` where the run's were read already."""
    from thalweg import api

    console.say("evaluating on held-out data …")
    return api.evaluate_run(bundle, folder, num_samples=num_samples, seed=seed, data=data)
