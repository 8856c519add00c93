"""The command `thalweg classify`."""

from pathlib import Path
from typing import Annotated

import typer

from thalweg import console
from thalweg.commands.trained import trained

EXAMPLE = "Example: `thalweg classify runs/jem images/ -o classes.csv`"


def classify(
    run: Annotated[Path, typer.Argument(help="Folder that `thalweg train … --recipe jem` wrote, or a Hub id.")],
    data: Annotated[
        Path, typer.Argument(metavar="INPUT", help="npy, npz, an image or a folder of them, in the data's own units.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV or .parquet to write.")] = Path("classes.csv"),
    alpha: Annotated[float, typer.Option(help="Flag rows whose p-value is at most this.", min=0, max=1)] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for machines.")] = False,
) -> None:
    """Class, calibrated confidence and all probabilities of each row, beside its energy, p-value and flag."""
    from thalweg.apps.table import write_scores
    from thalweg.data.files import read_array, read_names

    bundle = trained(run)
    console.writable(out, (".csv", ".parquet"))
    console.apart(out, data, run)
    x = read_array(data, shape=bundle.shape)
    p = bundle.classify(x)
    confidence, label = p.max(1)
    columns = {"label": label, "confidence": confidence, **bundle.score(x, alpha=alpha)}
    columns |= {f"p_{k}": p[:, k] for k in range(bundle.num_classes)}
    write_scores(out, read_names(data, len(x)), columns)
    flagged = int(columns["flag"].sum()) if "flag" in columns else None
    odd = "" if flagged is None else f", {flagged} flagged as unlike the training data (p <= {alpha:g})"
    console.say(f"{len(x)} rows in {out}{odd}")
    counts = label.bincount(minlength=bundle.num_classes).tolist()
    found = {"rows": len(x), "file": str(out), "flagged": flagged, "labels": counts}
    console.emit(found | {"mean_confidence": float(confidence.mean())}, as_json)
