"""The commands `thalweg detect fit` and `thalweg detect score`."""

from pathlib import Path
from typing import Annotated

import typer

from thalweg import console
from thalweg.core.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Find anomalies in tables.")
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for machines.")]


@app.command(epilog="Example: `thalweg detect fit normal.csv -o runs/pumps --drop id`")
def fit(
    table: Annotated[Path, typer.Argument(help="CSV or Parquet of normal rows, with the names of the columns.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the detector.")],
    target_column: Annotated[str | None, typer.Option(help="A label, which is not to be learned.")] = None,
    normal: Annotated[str | None, typer.Option(help="Fit on rows whose label is this; all rows if not given.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="A column to leave out; repeatable.")] = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Share of normal rows that may be flagged.")] = 0.05,
    missing: Annotated[str, typer.Option(help="raise, or marginalise: score rows by what they have.")] = "raise",
    calibration: Annotated[str, typer.Option(help="auto, unseen, or split: hold rows out.")] = "auto",
    max_rows: Annotated[int, typer.Option(help="Rows to use of a larger table, drawn evenly.", min=2)] = 50_000,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.", min=0, max=2**32 - 1)] = 0,
    as_json: Json = False,
) -> None:
    """Learn what normal rows look like, and calibrate the alarm."""
    from thalweg.apps.anomaly.files import Source, fit_file

    source = Source(path=table, target=target_column, normal=normal, drop=drop or [], max_rows=max_rows, seed=seed)
    bundle = fit_file(source, false_alarm_rate=false_alarm_rate, missing=missing, calibration=calibration)
    bundle.about["command"] = console.command()
    bundle.save_pretrained(out)
    rate = bundle.detector.realised_rate()
    n = len(bundle.detector.calibration_.energies)
    console.say(
        f"{out}: fitted on {bundle.about['rows_used']} rows; false-alarm rate {rate.expected:.3g}, "
        f"in [{rate.low:.2g}, {rate.high:.2g}] at 95 % by {n} rows"
    )
    result = {"run": str(out), **bundle.about, "features": bundle.detector.columns_.names, "rate": rate._asdict()}
    console.emit(result | {"calibrated_with": n, "threshold": -bundle.detector.offset_}, as_json)


@app.command(epilog="Example: `thalweg detect score runs/pumps new.parquet -o scores.csv`")
def score(
    run: Annotated[Path, typer.Argument(help="Folder that `thalweg detect fit` wrote.")],
    table: Annotated[Path, typer.Argument(help="CSV or Parquet with the columns of the fit, in any order.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV or Parquet to write.")] = Path("scores.csv"),
    alpha: Annotated[float | None, typer.Option(help="Flag p-values up to this; the fitted rate if not given.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="A column that the fit did not have; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Energy, p-value, q-value, flag and reasons of each row, block by block."""
    from thalweg.apps.anomaly.files import score_file
    from thalweg.apps.anomaly.saved import DetectorBundle
    from thalweg.apps.bundle import load

    console.writable(out, (".csv", ".parquet"))
    bundle = load(run)
    if not isinstance(bundle, DetectorBundle):
        raise UserError(f"{run}: a trained energy, no detector; score it with `thalweg score`")
    found = score_file(bundle, table, out, alpha=alpha, drop=drop or [])
    console.say(f"{found.rows} rows in {out}, {found.flagged} flagged; {found.discoveries} by the false discovery rate")
    console.emit({**found._asdict(), "file": str(out)}, as_json)
