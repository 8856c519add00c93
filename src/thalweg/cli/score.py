"""The command `thalweg score`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli import bad_rows, console, many_files
from thalweg.cli.many_files import Address, BlockRows, Data, EngineName, OnlyChanged, Workers
from thalweg.cli.options import Alpha, Device, Drop, Header, Json, Run, Trust, table_options
from thalweg.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from thalweg.bundle.bundle import Bundle

EXAMPLE = "Example: `thalweg score runs/digits images/ -o scores.csv`"


def score(
    run: Run,
    data: Data,
    out: Annotated[
        str, typer.Option("--out", "-o", help="CSV (or .parquet, .npy of energies) to write; a folder for many files.")
    ] = "scores.csv",
    alpha: Alpha = 0.01,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Of flagged texts the least likely letter and a repair; --alpha 1: of all."),
    ] = False,
    skip_bad: bad_rows.SkipBad = False,
    header: Header = None,
    drop: Drop = None,
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
    block_rows: BlockRows = None,
    only_changed: OnlyChanged = False,
    trust: Trust = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Energy, log p, p-value and flag of each row of a file, or of each line of a text; of many files in a folder."""
    many = many_files.are_many(data, out, engine)
    many_files.check_options(engine, workers, block_rows, only_changed, many=many)
    if many:
        if explain:
            raise UserError("must be left out for a folder of scores", argument="--explain", hint="score one file")
        from thalweg.scale.scorers import Options

        where, packages = many_files.anywhere(run), tuple(trust or ())
        options = Options(where, alpha, tuple(drop or ()), header, packages, device, skip_bad)
        how: Any = {"engine": engine, "workers": workers, "address": address}
        how |= {"block_rows": block_rows, "only_changed": only_changed}
        found = many_files.score("energy", options, data, out, **how)
        lost = bad_rows.say_first(found.num_left_out, found.left_out)
        flags = "" if found.flagged is None else f", {found.flagged} flagged (p <= {alpha:g})"
        without = many_files.without_scores(found.num_left_out)
        console.say(f"{found.rows} rows in {found.parts} parts in {out}{without}{flags}")
        console.emit({**found._asdict(), "left_out": lost, "file": out}, as_json)
        return
    how = {"skip_bad": skip_bad, **table_options(header, drop)}
    _score_one(run, Path(data), Path(out), alpha=alpha, explain=explain, how=how, device=device, as_json=as_json)


def _score_one(
    run: Path,
    data: Path,
    out: Path,
    *,
    alpha: float,
    explain: bool,
    how: dict[str, Any],
    device: str,
    as_json: bool,
) -> None:
    """One file into one file; `how` it is read."""
    from thalweg.bundle.bundle import Bundle
    from thalweg.bundle.files import load_as
    from thalweg.bundle.inputs import read_rows
    from thalweg.data.score_table import write_scores

    bundle = load_as(run, Bundle, device=device)
    console.writable(out, (".csv", ".parquet", ".npy"))
    console.refuse_overwrite(out, data, run)
    if explain:
        _require_explainable(bundle, out)
    with bad_rows.offering_skip_bad(how["skip_bad"]):
        found = read_rows(bundle, data, **how)
    x, names = found.x, found.names
    lost = bad_rows.say(found.left_out)
    if lost and out.suffix.lower() == ".npy":
        text = f"must not be an .npy, as {len(lost)} of {found.total} rows are left out and it has no names"
        raise UserError(text, argument=str(out), hint="write a .csv or .parquet")
    scores = bundle.score(x, alpha=alpha)
    more = _explained(bundle, names, scores.get("flag")) if explain else {}
    write_scores(out, names, {**scores, **more}, heading="name" if bundle.alphabet is None else "text")
    flagged = int(scores["flag"].sum()) if "flag" in scores else None
    left = f", {len(lost)} of {found.total} left out" if lost else ""
    flags = "" if flagged is None else f", {flagged} flagged (p <= {alpha:g})"
    console.say(f"{console.count(len(x), 'row')} in {out}{left}{flags}")
    mean = float(scores["energy"].mean())
    mean_energy = mean if math.isfinite(mean) else None  # JSON knows no infinity
    result = {"rows": len(x), "file": str(out), "left_out": lost, "flagged": flagged, "mean_energy": mean_energy}
    console.emit(result, as_json)


def _require_explainable(bundle: "Bundle", out: Path) -> None:
    if bundle.alphabet is None:
        text = f"must be left out: {bundle.path} is a model of {bundle.kind} data, not of texts"
        raise UserError(text, argument="--explain", hint="`thalweg detect score` gives reasons for rows of tables")
    if out.suffix.lower() == ".npy":
        text = "must be left out for .npy, which holds energies alone"
        raise UserError(text, argument="--explain", hint="write a .csv or .parquet")


def _explained(bundle: "Bundle", texts: list[str], flags: "Tensor | None") -> dict[str, list[Any]]:
    """Columns of the least likely letter, its place from 1, its surprise, what was expected, and the repair.

    None where a text is not flagged; a model without calibration has no flags, and all texts are explained.
    """
    rows = [i for i in range(len(texts)) if flags is None or bool(flags[i])]
    names = ("letter", "place", "surprise", "expected", "repair", "repair_energy")
    columns: dict[str, list[Any]] = {name: [None] * len(texts) for name in names}
    for i, found in zip(rows, bundle.explain([texts[i] for i in rows]), strict=True):
        if found.worst is not None:
            w = found.worst
            values = (found.text[w], w + 1, found.surprise[w], found.expected[w])
            for name, value in zip(names, values, strict=False):
                columns[name][i] = value
        columns["repair"][i], columns["repair_energy"][i] = found.repair, found.repair_energy
    return columns
