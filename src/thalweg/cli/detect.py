"""The commands `thalweg detect fit` and `thalweg detect score`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli import bad_rows, console, many_files
from thalweg.cli.many_files import Address, BlockRows, Data, EngineName, OnlyChanged, Workers
from thalweg.cli.options import Device, Header, Json, Trust, by_option
from thalweg.core.errors import UserError

if TYPE_CHECKING:
    from thalweg.apps.anomaly.saved import DetectorBundle

app = typer.Typer(no_args_is_help=True, help="Find anomalies in tables.")
OPTIONS = (
    "alpha", "calibration", "decimal", "dtype", "false_alarm_rate", "missing", "na_values", "normal", "thousands",
)  # fmt: skip
NA = "NA, N/A, NaN, nan, NULL, null, None and `<NA>`"  # `reading_options.NA_WORDS`; importing it would delay --help


@app.command(epilog="Example: `thalweg detect fit normal.csv -o runs/pumps --drop id`")
def fit(
    table: Annotated[Path, typer.Argument(help="CSV or Parquet of normal rows, with the names of the columns.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the detector.")],
    target_column: Annotated[str | None, typer.Option(help="A column of labels, which is not learned.")] = None,
    normal: Annotated[str | None, typer.Option(help="Fit on rows whose label is this; all rows if not given.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="A column to leave out; repeatable.")] = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Share of normal rows that may be flagged.")] = 0.05,
    missing: Annotated[str, typer.Option(help="raise, or marginalise: score rows by what they have.")] = "raise",
    na_values: Annotated[
        list[str] | None,
        typer.Option(help=f"A text that means a missing value, in place of {NA}; repeatable; '' for none."),
    ] = None,
    decimal: Annotated[str, typer.Option(help="The decimal point of texts that are numbers: . or ,")] = ".",
    thousands: Annotated[
        str | None,
        typer.Option(help="The separator of thousands in such texts: , . ' _ or a blank; none if not given."),
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="NAME=category or NAME=number, where the values are ambiguous; repeatable.")
    ] = None,
    calibration: Annotated[str, typer.Option(help="auto, unseen, or split: hold rows out.")] = "auto",
    max_rows: Annotated[int, typer.Option(help="Rows to use of a larger table, drawn evenly.", min=2)] = 50_000,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.", min=0, max=2**32 - 1)] = 0,
    header: Header = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Learn what normal rows look like, and calibrate the alarm."""
    from thalweg.apps.anomaly.saved import replaceable
    from thalweg.apps.anomaly.tables.fit_file import fit_file
    from thalweg.apps.anomaly.tables.training_rows import Source
    from thalweg.data.columns.contents import describe

    replaceable(out)
    source = Source(
        path=table, target=target_column, normal=normal, drop=drop or [], max_rows=max_rows, seed=seed, header=header
    )
    with by_option(*OPTIONS):
        bundle = fit_file(
            source,
            false_alarm_rate=false_alarm_rate,
            missing=missing,
            calibration=calibration,
            decimal=decimal,
            thousands=thousands,
            na_values=na_values,
            dtype=_kinds(dtype or []),
            device=device,
        )
    bundle.about["command"] = console.command()
    bundle.save_pretrained(out)
    left_out = min(bundle.about["rows"], max_rows) - bundle.about["rows_used"]
    gaps = f", {left_out} with a gap left out" if left_out else ""
    rate = bundle.detector.realised_rate()
    n = len(bundle.detector.calibration_.energies)
    console.say(describe(bundle.about["columns"]))
    console.say(
        f"{out}: fitted on {bundle.about['rows_used']} rows{gaps}; false-alarm rate {rate.expected:.3g}, in "
        f"[{rate.low:.2g}, {rate.high:.2g}] at 95 % by {n} rows"
    )
    result = {"run": str(out), **bundle.about, "features": bundle.detector.features()[0], "rate": rate._asdict()}
    console.emit(result | {"calibrated_with": n, "threshold": -bundle.detector.offset_}, as_json)


@app.command(epilog="Example: `thalweg detect score runs/pumps new.parquet -o scores.csv`")
def score(
    run: Annotated[str, typer.Argument(help="Folder that `thalweg detect fit` wrote.")],
    table: Data,
    out: Annotated[
        str, typer.Option("--out", "-o", help="CSV or Parquet to write; a folder for many files.")
    ] = "scores.csv",
    alpha: Annotated[float | None, typer.Option(help="Flag p-values up to this; the fitted rate if not given.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="A column that the fit did not have; repeatable.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Name rows that cannot be scored, and leave their scores empty.")
    ] = False,
    header: Header = None,
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
    block_rows: BlockRows = None,
    only_changed: OnlyChanged = False,
    trust: Trust = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Energy, p-value, q-value, flag and reasons of each row, block by block."""
    many = many_files.are_many(table, out, engine)
    many_files.check_options(engine, workers, block_rows, only_changed, many=many)
    if many:
        from thalweg.scale.scorers import Options

        _require_detector(run)
        where, packages = many_files.anywhere(run), tuple(trust or ())
        options = Options(where, alpha, tuple(drop or ()), header, packages, device, skip_bad)
        how: Any = {"engine": engine, "workers": workers, "address": address}
        how |= {"block_rows": block_rows, "only_changed": only_changed}
        with by_option(*OPTIONS):
            found = many_files.score("detector", options, table, out, **how)
        levels, where = found.levels, f"{found.parts} parts in {out}"
    else:
        from thalweg.apps.anomaly.tables.score_file import score_file

        console.writable(Path(out), (".csv", ".parquet"))
        bundle = _detector(run, device)
        how = {"alpha": alpha, "drop": drop or [], "header": header, "skip_bad": skip_bad}
        with bad_rows.offering_skip_bad(skip_bad), by_option(*OPTIONS):
            found = score_file(bundle, Path(table), Path(out), **how)
        levels, where = len(bundle.detector.calibration_.energies) + 1, out
    lost, least = bad_rows.say_first(found.num_left_out, found.left_out), found.least_discoveries
    without = many_files.without_scores(found.num_left_out)
    rare = f", which takes {least} rows at the least p-value, 1/{levels} by {levels - 1} calibration rows"
    console.say(
        f"{found.rows} rows in {where}{without}, {found.flagged} flagged; {found.discoveries} by the false discovery "
        f"rate{rare if not found.discoveries and found.flagged and least > 1 else ''}"
    )
    console.emit({**found._asdict(), "left_out": lost, "file": out}, as_json)


def _detector(run: str, device: str) -> "DetectorBundle":
    """The detector in a folder or on the Hub; UserError for anything else."""
    from thalweg.apps.anomaly.saved import DetectorBundle
    from thalweg.bundle.files import load_as

    _require_detector(run)
    return load_as(run, DetectorBundle, device=device)


def _require_detector(run: str) -> None:
    """UserError for a folder that holds no run of any kind."""
    folder = Path(run)
    if folder.is_dir() and not (folder / "config.json").exists():
        hint = "give the folder that `thalweg detect fit` wrote"
        raise UserError("must hold a detector", argument=run, hint=hint)


def _kinds(words: list[str]) -> dict[str, str]:
    """{name: kind} of NAME=KIND; a name may hold =."""
    wrong = next((text for text in words if "=" not in text), None)
    if wrong is not None:
        raise UserError("must be NAME=category or NAME=number", argument="dtype", value=wrong)
    return {name: kind for name, _, kind in (text.rpartition("=") for text in words)}
