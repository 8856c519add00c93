"""The command `thalweg export`."""

from pathlib import Path
from typing import Annotated

import typer

from thalweg.cli import console
from thalweg.cli.options import Device, Json, Trust

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

    found = write(load_as(run, StoredType, device=device), out, format=format, rows=rows, say=console.say)
    for graph in found["graphs"]:
        largest = max(graph["check"]["largest"].values())
        figures = f"largest difference {largest:.1g} over {graph['check']['random_rows']} random rows"
        console.say(f"{graph['file']} in {out}: {figures}")
    console.emit(found, as_json)
