"""The command `thalweg evaluate`, and the report of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli import console
from thalweg.cli.options import Device, Json, Run, Seed
from thalweg.core.errors import UserError

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle
    from thalweg.data.catalog import Dataset


EXAMPLE = "Example: `thalweg evaluate runs/digits`"


def evaluate(
    run: Run,
    num_samples: Annotated[int, typer.Option("-n", help="Samples to judge.", min=20)] = 1000,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a bundle against held-out data and write report.html and evaluation.json."""
    from thalweg.bundle.bundle import Bundle
    from thalweg.bundle.files import load_as

    bundle = load_as(run, Bundle, device=device)
    figures = evaluate_run(bundle, bundle.path, num_samples=num_samples, seed=seed)
    console.say(f"report in {bundle.path / 'report.html'}")
    console.emit(figures, as_json)


def evaluate_run(
    bundle: "Bundle", folder: Path, *, num_samples: int, seed: int, data: "Dataset | None" = None
) -> dict[str, Any]:
    """Figures and report; `data` where the run's were read already."""
    from thalweg.apps.landscape.picture_files import of_report
    from thalweg.bundle.dataset import data_of
    from thalweg.bundle.inputs import in_float32
    from thalweg.data.catalog import as_float
    from thalweg.evaluate.report import write_figures, write_report
    from thalweg.evaluate.suite import evaluate_bundle
    from thalweg.training.metrics_log import read_metrics

    data = data_of(bundle) if data is None else data
    if len(data.held_out) < 20:
        few = f"must have 20 held-out rows or more, and has {len(data.held_out)}"
        raise UserError(few, argument=str(folder), hint="train on more data")
    console.say("evaluating on held-out data …")
    bundle, _, (train, held_out) = in_float32(bundle, as_float(data.train[:10_000]), as_float(data.held_out))
    figures, pictures = evaluate_bundle(
        bundle,
        train=train,
        held_out=held_out,
        held_out_labels=data.held_out_labels,
        history=read_metrics(folder),
        num_samples=num_samples,
        seed=seed,
    )
    write_figures(folder / "evaluation.json", figures)
    title = f"An energy of {bundle.config['run']['data']['name']}"
    command = bundle.config["command"] or "thalweg.run.fit.fit(…)"
    write_report(
        folder / "report.html",
        title=title,
        command=command,
        figures=figures,
        pictures=pictures | of_report(bundle, held_out, data.held_out_labels, seed=seed),
        data=data.source,
    )
    return figures
