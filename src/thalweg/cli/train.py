"""The command `thalweg train`."""

import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli import bad_rows, console
from thalweg.cli.evaluate import evaluate_run
from thalweg.cli.options import SEEDS, Device, Drop, Header, Json, Trust, by_option, table_options
from thalweg.core.errors import StopSignal, ThalwegError

if TYPE_CHECKING:
    from thalweg.bundle.bundle import Bundle
    from thalweg.data.catalog import Dataset


OF_DATA = ("header", "drop", "size", "labels", "skip_bad", "hub")
EXAMPLE = "Example: `thalweg train mnist --minutes 10 -o runs/digits`"


def train(
    data: Annotated[
        str,
        typer.Argument(
            help="mnist, fashion-mnist, two-moons, … or a path: npz, npy, CSV, Parquet, folder, .txt; hub:USER/NAME."
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the recipe: `energy.embed=32`.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time to train, turned into steps at the start.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps to train, in place of --minutes.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="dual, dual-transformer, pcd, pcd-transformer, pcd-conv, pcd-resnet, toy2d, jem, conditional-labels, "
            "words, a .yaml file, or PACKAGE:NAME; if not given dual, and words for a .txt."
        ),
    ] = None,
    path: Annotated[str | None, typer.Option("--data", help="File or folder with the full set.")] = None,
    hub: Annotated[bool, typer.Option("--hub", help="Fetch the set from the Hugging Face Hub.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; runs/DATA-RECIPE if not given.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness; 0 if not given.", min=0, max=SEEDS)] = None,
    report: Annotated[bool, typer.Option(help="Evaluate at the end and write report.html.")] = True,
    header: Header = None,
    drop: Drop = None,
    size: Annotated[
        int | None, typer.Option(help="Images: resize the shorter side to so many pixels, and crop the middle.", min=1)
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="`folder`: each subfolder a class; a CSV of names and classes; of a table or the Hub a COLUMN."
        ),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.")] = False,
    trust: Trust = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train an energy and leave a bundle."""
    from thalweg.core.progress import Bar
    from thalweg.run.fit import Request, fit_with_data
    from thalweg.training.distributed import address

    default = "words" if Path(data).suffix.lower() == ".txt" else "dual"
    folder = out or Path("runs") / f"{_stem(data)}-{_stem(recipe or default)}"
    request = Request(
        data=data,
        recipe=recipe,
        path=path,
        hub=hub,
        minutes=minutes,
        steps=steps,
        seed=seed,
        checkpoint_every=checkpoint_every,
        overrides=overrides or [],
        command=console.command(),
        device=device,
        size=size,
        labels=labels,
        skip_bad=skip_bad,
        **table_options(header, drop),
    )
    try:
        with bad_rows.offering_skip_bad(skip_bad), by_option(*OF_DATA):
            bundle, rows = fit_with_data(request, folder, resume=resume, progress=Bar(folder), log=console.say)
    except SystemExit as stop:  # the bar found nobody reading; to end with 0 would say that the run had
        raise ThalwegError(
            f"{folder}: standard error was closed, which ends the run; resume it with --resume"
        ) from stop
    if address()[0]:
        return  # the first of several processes does the rest
    result: dict[str, Any] = {"run": str(folder), "data": bundle.config["data"], "training": bundle.config["training"]}
    conditional = bundle.config.get("conditional")
    if conditional is not None:  # there is no law of whole rows, which a report is about
        result["conditional"], report = conditional, False
        found = {"the energy": conditional["log_prob"], **conditional["baselines"]}
        known = ", ".join(f"{value:.3f} ({name})" for name, value in found.items() if value is not None)
        console.say(f"held-out log p(y | x), nats a row: {known}")
    if report and not (folder / "report.html").exists():
        result |= _report(bundle, folder, bundle.config["run"]["seed"], rows)
    made = [name for name in ("report.html", "preview.png", "preview.txt") if (folder / name).exists()]
    then = "sample {} -n 64" if conditional is None else "score {} " + shlex.quote(data)
    console.say(f"done: {folder}  ({', '.join([*made, 'try'])}: thalweg {then.format(shlex.quote(str(folder)))})")
    console.emit(result, as_json)


def _stem(name: str) -> str:
    """A name, or that of a file, without the folder or the package where it is."""
    return Path(name.rpartition(":")[2]).stem


def _report(bundle: "Bundle", folder: Path, seed: int, data: "Dataset | None") -> dict[str, Any]:
    """The figures of a new run. Where they cannot be computed the bundle is whole all the same, and a line says why."""
    try:
        return {"figures": evaluate_run(bundle, folder, num_samples=None, seed=seed, data=data)}
    except ValueError as error:  # UserError is one
        reason = " ".join(str(error).split())
    except KeyboardInterrupt as stop:
        signum = stop.signum if isinstance(stop, StopSignal) else signal.SIGINT
        raise _Unreported(folder, signum) from stop
    console.say(f"no report: {reason}")
    return {"figures": None, "no_report": reason}


class _Unreported(ThalwegError):
    resumable = False

    def __init__(self, folder: Path, signum: int):
        super().__init__(
            "stopped in the evaluation; the run is complete, its report is made by thalweg evaluate "
            f"{shlex.quote(str(folder))}"
        )
        self.signum = signum
