"""The command `thalweg score`."""

import math
from pathlib import Path
from typing import Annotated

import typer

from thalweg.cli import console
from thalweg.cli.options import Alpha, Device, Drop, Header, Input, Json, Run, Trust, table_options

EXAMPLE = "Example: `thalweg score runs/digits images/ -o scores.csv`"


def score(
    run: Run,
    data: Input,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV (or .parquet, .npy of energies) to write.")] = Path(
        "scores.csv"
    ),
    alpha: Alpha = 0.01,
    header: Header = None,
    drop: Drop = None,
    trust: Trust = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Energy, log p, p-value and flag of each row of a file, or of each line of a text."""
    from thalweg.bundle.bundle import Bundle
    from thalweg.bundle.files import load_as
    from thalweg.bundle.inputs import read_codes, read_rows
    from thalweg.data.files import read_names
    from thalweg.data.score_table import write_scores

    bundle = load_as(run, Bundle, device=device)
    console.writable(out, (".csv", ".parquet", ".npy"))
    console.refuse_overwrite(out, data, run)
    if bundle.alphabet is not None:
        names, x = read_codes(bundle, data, **table_options(header, drop))
    else:
        x = read_rows(bundle, data, **table_options(header, drop))
        names = read_names(data, len(x))
    scores = bundle.score(x, alpha=alpha)
    write_scores(out, names, scores, heading="name" if bundle.alphabet is None else "text")
    flagged = int(scores["flag"].sum()) if "flag" in scores else None
    console.say(f"{len(x)} rows in {out}" + ("" if flagged is None else f", {flagged} flagged (p <= {alpha:g})"))
    mean = float(scores["energy"].mean())
    mean_energy = mean if math.isfinite(mean) else None  # JSON knows no infinity
    console.emit({"rows": len(x), "file": str(out), "flagged": flagged, "mean_energy": mean_energy}, as_json)
