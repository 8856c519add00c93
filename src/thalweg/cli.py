"""The command line: train, sample, score, classify, detect, inpaint, rerank, landscape, evaluate, bench.

Exit codes: 0 done, 1 the work failed, 2 the input is wrong (one line: what, where, how to mend), 130 and 143 stopped by
Ctrl-C and SIGTERM with the run saved. With `--json` the result is one JSON object on standard output; progress and
messages go to standard error. Nothing heavy is imported before a command runs, so `--help` is quick.
"""

import logging
import math
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from thalweg import console
from thalweg.commands import classify, detect, inpaint, landscape, rerank
from thalweg.commands.options import Drop, Header, Json, table_options
from thalweg.commands.trained import trained
from thalweg.core.errors import ThalwegError, UserError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Energy-based models for work: train an energy, sample it, score with it, measure it.",
    rich_markup_mode="markdown",
)
SEEDS = 2**64 - 1
Seed = Annotated[int, typer.Option(help="Seed of all randomness.", min=0, max=SEEDS)]
Run = Annotated[Path, typer.Argument(help="Folder that `thalweg train` wrote, or a Hub id.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from thalweg import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the library's log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """Energy-based models for work."""
    import warnings

    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr)


@app.command(epilog="Example: `thalweg train mnist --minutes 10 -o runs/digits`")
def train(
    data: Annotated[str, typer.Argument(help="mnist, fashion-mnist, two-moons, … or a path: npz, npy, CSV, folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the recipe: `energy.embed=32`.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time to train, turned into steps at the start.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps to train, in place of --minutes.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="dual, pcd, pcd-conv, pcd-resnet, toy2d, jem, or a .yaml file; dual if not given."),
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
    as_json: Json = False,
) -> None:
    """Train an energy and leave a bundle."""
    from thalweg.apps.fit import Request, fit_with_data
    from thalweg.train.distributed import address

    folder = out or Path("runs") / f"{Path(data).stem}-{Path(recipe or 'dual').stem}"
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
        **table_options(header, drop),
    )
    try:
        bundle, data = fit_with_data(request, folder, resume=resume, progress=_bar(folder), log=console.say)
    except SystemExit as stop:  # the bar found nobody reading; to end with 0 would say that the run had
        raise ThalwegError(f"{folder}: standard error was closed, which ends the run; it resumes") from stop
    if address()[0]:
        return  # the first of several processes does the rest
    result: dict[str, Any] = {
        "run": str(folder),
        "data": bundle.config["data"],
        "training": bundle.config["training"],
    }
    if report and not (folder / "report.html").exists():
        result |= _report(bundle, folder, bundle.config["run"]["seed"], data)
    made = [name for name in ("report.html", "preview.png") if (folder / name).exists()]
    console.say(f"done: {folder}  ({', '.join([*made, 'try'])}: thalweg sample {shlex.quote(str(folder))} -n 64)")
    console.emit(result, as_json)


@app.command(epilog="Example: `thalweg sample runs/digits -n 64 -o samples.png`")
def sample(
    run: Run,
    n: Annotated[int, typer.Option("-n", help="How many.", min=1)] = 64,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="PNG: a grid of images or a scatter plot; CSV or Parquet: rows; samples.png if neither is given.",
        ),
    ] = None,
    npy: Annotated[Path | None, typer.Option(help="All samples in the data's own units, as .npy.")] = None,
    num_steps: Annotated[int | None, typer.Option(help="Sampling steps.", min=1)] = None,
    label: Annotated[list[int] | None, typer.Option(help="A class to draw, repeatable: they take turns.")] = None,
    strength: Annotated[float, typer.Option(help="With --label: 1 is the class's law, above it typical ones.")] = 1.0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draw samples from a trained energy."""

    from thalweg.core.check import fits_memory
    from thalweg.core.stream import write_array

    bundle = trained(run)
    shown = Path("samples.png") if out is None and npy is None else out
    kinds = (".png",) if bundle.kind == "image" else (".png", ".csv", ".parquet")
    for path, suffixes in ((shown, kinds), (npy, (".npy",))):
        if path is not None:
            console.writable(path, suffixes)
            console.apart(path, run)
    fits_memory(n, bundle.shape)
    labels = [label[i % len(label)] for i in range(n)] if label else None
    x = bundle.sample(n, seed=seed, num_steps=num_steps, labels=labels, strength=strength)
    if npy is not None:
        write_array(npy, x)
        console.say(f"{n} samples in {npy}")
    if shown is not None:
        kept = _write_samples(bundle, x, shown)
        left = "" if npy else "; --npy FILE keeps all"
        console.say(f"{n} samples in {shown}" + (f" (the first {kept} drawn{left})" if kept < n else ""))
    both = {"picture": str(shown)} if npy is not None and shown is not None else {}
    result = {"samples": n, "file": str(npy or shown), **both, "shape": list(x.shape), "seed": seed}
    console.emit(result, as_json)


def _write_samples(bundle: Any, x: Any, out: Path) -> int:
    """A picture, or a table with the names of the columns; how many of the samples are in it."""
    from thalweg.core.store import write_bytes
    from thalweg.data.score_table import write_table
    from thalweg.evaluate.pictures import grid, png, scatter

    if out.suffix.lower() != ".png":
        names = bundle.layout.names or [f"x{i}" for i in range(x.shape[1])]
        write_table(out, dict(zip(names, x.T, strict=True)))
        return len(x)
    some = x[:400] if bundle.kind == "image" else x[:10_000]
    write_bytes(out, grid(some) if bundle.kind == "image" else png(scatter(some, some[:0])))
    return len(some)


@app.command(epilog="Example: `thalweg score runs/digits images/ -o scores.csv`")
def score(
    run: Run,
    data: Annotated[
        Path, typer.Argument(metavar="INPUT", help="npy, npz, CSV, Parquet, an image or a folder of them.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV (or .parquet, .npy of energies) to write.")] = Path(
        "scores.csv"
    ),
    alpha: Annotated[float, typer.Option(help="Flag rows whose p-value is at most this.", min=0, max=1)] = 0.01,
    header: Header = None,
    drop: Drop = None,
    as_json: Json = False,
) -> None:
    """Energy, log p, p-value and flag of each row of a file."""
    from thalweg.apps.inputs import read_rows
    from thalweg.data.files import read_names
    from thalweg.data.score_table import write_scores

    bundle = trained(run)
    console.writable(out, (".csv", ".parquet", ".npy"))
    console.apart(out, data, run)
    x = read_rows(bundle, data, **table_options(header, drop))
    scores = bundle.score(x, alpha=alpha)
    write_scores(out, read_names(data, len(x)), scores)
    flagged = int(scores["flag"].sum()) if "flag" in scores else None
    console.say(f"{len(x)} rows in {out}" + ("" if flagged is None else f", {flagged} flagged (p <= {alpha:g})"))
    mean = float(scores["energy"].mean())
    mean_energy = mean if math.isfinite(mean) else None  # JSON knows no infinity
    console.emit({"rows": len(x), "file": str(out), "flagged": flagged, "mean_energy": mean_energy}, as_json)


@app.command(epilog="Example: `thalweg evaluate runs/digits`")
def evaluate(
    run: Run,
    num_samples: Annotated[int, typer.Option("-n", help="Samples to judge.", min=20)] = 1000,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a bundle against held-out data and write report.html and evaluation.json."""

    bundle = trained(run)
    figures = _evaluate(bundle, bundle.path, num_samples=num_samples, seed=seed)
    console.say(f"report in {bundle.path / 'report.html'}")
    console.emit(figures, as_json)


@app.command(epilog="Example: `thalweg bench --nets cnn --batch 64 --threads 1`")
def bench(
    nets: Annotated[list[str] | None, typer.Option(help="cnn, resnet or mlp, repeatable; all if not given.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Chains, repeatable; else 64, 256.", min=1, max=65536)] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Threads, repeatable; else 1, 2.", min=1, max=256)] = None,
    rounds: Annotated[int, typer.Option(help="Rounds that count; more for a busy machine.", min=1)] = 5,
    dual: Annotated[bool, typer.Option(help="Also training and sampling by dual score matching.")] = True,
    as_json: Json = False,
) -> None:
    """Measure how fast chains run on this machine, beside a tutorial's loop and the bare convolutions.

    Then how fast dual score matching trains and samples, beside plain eager code.

    Under five minutes. `python benchmarks/chain.py` in a clone of the repository measures other libraries as well.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported, which is now
    from thalweg.apps import speed, speed_dual

    nets, batch, threads = (list(dict.fromkeys(given or [])) for given in (nets, batch, threads))  # a pair shares a row
    nets, rows, refusal = nets or list(speed.NETS), [], speed.bf16_pays()
    unknown = [net for net in nets if net not in speed.NETS]
    if unknown:
        raise UserError(f"must be one of {', '.join(speed.NETS)}", argument="--nets", value=unknown[0])
    if refusal:
        console.say(refusal)
    for net in nets:
        for size in batch or [64, 256]:
            for number in threads or [1, 2]:
                console.say(f"{net}, {size} chains, threads: {number} …")
                rows += speed.measure(net, size, number, rounds=rounds, bf16=refusal is None)
    works = [(work, number) for work in speed_dual.WORK for number in threads or [1, 2]] if dual else []
    duals = []
    for work, number in works:
        console.say(f"dual score matching, {work}, threads: {number} …")
        duals += speed_dual.measure(work, number, rounds=min(rounds, 5))
    if not as_json:
        typer.echo(speed.table(rows))
        typer.echo("\n" + speed_dual.table(duals) if duals else "")
    found = {"rows": [row._asdict() for row in rows], "dual": [row._asdict() for row in duals], "bf16": refusal}
    console.emit(found, as_json)


app.add_typer(detect.app, name="detect")
app.command(epilog=classify.EXAMPLE)(classify.classify)
app.command(epilog=inpaint.EXAMPLE)(inpaint.inpaint)
app.add_typer(rerank.app, name="rerank")
app.command(epilog=landscape.EXAMPLE)(landscape.landscape)


def main() -> None:
    """The entry point."""
    console.run(app)


def _report(bundle: Any, folder: Path, seed: int, data: Any) -> dict[str, Any]:
    """The figures of a new run; the bundle is whole even where they cannot be had, and the reason is told."""
    try:
        return {"figures": _evaluate(bundle, folder, num_samples=1000, seed=seed, data=data)}
    except ValueError as error:  # UserError is one
        reason = " ".join(str(error).split())
    except KeyboardInterrupt as stop:
        raise _Unreported(folder, getattr(stop, "signum", signal.SIGINT)) from stop
    console.say(f"no report: {reason}")
    return {"figures": None, "no_report": reason}


class _Unreported(ThalwegError):
    resumable = False

    def __init__(self, folder: Path, signum: int):
        super().__init__(
            f"stopped in the evaluation; the run is complete, its report is made by "
            f"thalweg evaluate {shlex.quote(str(folder))}"
        )
        self.signum = signum


def _evaluate(bundle: Any, folder: Path, *, num_samples: int, seed: int, data: Any = None) -> dict[str, Any]:
    """Figures and report; `data` where the run's were read already."""
    from thalweg.apps.inputs import in_float32
    from thalweg.apps.landscape.pictures import of_report
    from thalweg.apps.rows import data_of
    from thalweg.data.catalog import as_float
    from thalweg.evaluate.report import write_figures, write_report
    from thalweg.evaluate.suite import evaluate_bundle
    from thalweg.train.track import read_metrics

    data = data_of(bundle) if data is None else data
    if len(data.held_out) < 20:
        few = f"{len(data.held_out)} rows held out, an evaluation wants 20 or more"
        raise UserError(few, argument=str(folder), hint="give more data")
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
    command = bundle.config["command"] or "thalweg.apps.fit.fit(…)"
    write_report(
        folder / "report.html",
        title=title,
        command=command,
        figures=figures,
        pictures=pictures | of_report(bundle, held_out, data.held_out_labels, seed=seed),
        data=data.source,
    )
    return figures


def _bar(folder: Path) -> Any:
    from thalweg.progress import Bar

    return Bar(folder)


if __name__ == "__main__":
    main()
