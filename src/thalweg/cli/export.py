"""The command `thalweg export`."""

from pathlib import Path
from typing import Annotated

import typer

from thalweg.cli import console
from thalweg.cli.options import Device, Json, Trust
from thalweg.core.errors import UserError

EXAMPLE = "Example: `thalweg export runs/detector --format onnx -o exported`"


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, a detector or a re-ranker, or a Hub id.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, or a .onnx or .pt2 file.")],
    format: Annotated[str, typer.Option("--format", help="onnx or pt2 (torch.export).")] = "onnx",
    rows: Annotated[int, typer.Option(help="Random rows of the check.", min=100)] = 10_000,
    trust: Trust = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write the energy, its gradient and a sampler step, or a whole detector, as graphs for other runtimes."""
    from thalweg.bundle.files import StoredType, load_as
    from thalweg.export.export import export as write

    if not out.is_dir() and out.suffix.lower() not in ("", ".onnx", ".pt2"):
        hint = "name a folder, or a file that ends in .onnx or .pt2"
        raise UserError("must be a folder, a .onnx or a .pt2 file", argument="--out", value=str(out), hint=hint)
    if not out.absolute().parent.is_dir():
        raise UserError("must lie in a folder that is there", argument="--out", value=str(out), hint="make it first")
    console.check_rights((out.resolve() if out.is_dir() else out.absolute()).parent, out)
    try:
        found = write(load_as(run, StoredType, device=device), out, format=format, rows=rows, say=console.say)
    except UserError as error:
        if error.argument != "run":
            raise
        raise error.replace(argument=str(run)) from error
    for graph in found["graphs"]:
        largest = max(graph["check"]["largest"].values())
        figures = f"largest difference {largest:.1g} over {graph['check']['random_rows']} random rows"
        at_steps = graph["check"]["at_steps"]
        beside = f", beside {console.count(at_steps, 'row')} at steps" if at_steps else ""
        console.say(f"{graph['file']} in {out}: {figures}{beside}")
    console.emit(found, as_json)
