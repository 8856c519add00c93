"""The command `thalweg classify`."""

from pathlib import Path
from typing import Annotated

import typer

from thalweg.cli import bad_rows, console
from thalweg.cli.options import Alpha, Device, Drop, Header, Input, Json, Trust, table_options

EXAMPLE = "Example: `thalweg classify runs/jem images/ -o classes.csv`"


def classify(
    run: Annotated[Path, typer.Argument(help="Folder that `thalweg train … --recipe jem` wrote, or a Hub id.")],
    data: Input,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV or .parquet to write.")] = Path("classes.csv"),
    alpha: Alpha = 0.01,
    skip_bad: bad_rows.SkipBad = False,
    header: Header = None,
    drop: Drop = None,
    trust: Trust = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Class, calibrated confidence and all probabilities of each row, beside its energy, p-value and flag."""
    from thalweg.bundle.bundle import Bundle
    from thalweg.bundle.classes import class_names, require_classes
    from thalweg.bundle.files import load_as
    from thalweg.bundle.inputs import read_rows, require_numbers
    from thalweg.data.score_table import write_scores

    bundle = load_as(run, Bundle, device=device)
    require_numbers(bundle, "classes")
    require_classes(bundle)
    console.writable(out, (".csv", ".parquet"))
    console.refuse_overwrite(out, data, run)
    with bad_rows.offering_skip_bad(skip_bad):
        found = read_rows(bundle, data, skip_bad=skip_bad, **table_options(header, drop))
    x, lost = found.x, bad_rows.say(found.left_out)
    p, names = bundle.classify(x), class_names(bundle)
    confidence, label = p.max(1)
    named = {} if bundle.config["data"].get("classes") is None else {"class": [names[k] for k in label.tolist()]}
    columns = {"label": label, **named, "confidence": confidence, **bundle.score(x, alpha=alpha)}
    columns |= {f"p_{name}": p[:, k] for k, name in enumerate(names)}
    write_scores(out, found.names, columns)
    flagged = int(columns["flag"].sum()) if "flag" in columns else None
    odd = "" if flagged is None else f", {flagged} flagged as unlike the training data (p <= {alpha:g})"
    left = f", {len(lost)} of {found.total} left out" if lost else ""
    console.say(f"{console.count(len(x), 'row')} in {out}{left}{odd}")
    counts = label.bincount(minlength=bundle.num_classes).tolist()
    if named:
        told = ", ".join(f"{n} {name}" for name, n in zip(names, counts, strict=True))
        console.say(f"classes: {told}")
    result = {"rows": len(x), "file": str(out), "left_out": lost, "flagged": flagged, "labels": counts}
    console.emit(result | {"classes": names, "mean_confidence": float(confidence.mean())}, as_json)
