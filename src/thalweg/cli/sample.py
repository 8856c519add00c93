"""The command `thalweg sample`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thalweg.cli import console
from thalweg.cli.options import Device, Json, Run, Seed, Trust

if TYPE_CHECKING:
    from torch import Tensor

    from thalweg.bundle.bundle import Bundle


KINDS = {"image": (".png",), "vector": (".png", ".csv", ".parquet"), "text": (".txt", ".csv", ".parquet")}
EXAMPLE = "Example: `thalweg sample runs/digits -n 64 -o samples.png`"


def sample(
    run: Run,
    n: Annotated[int, typer.Option("-n", help="How many.", min=1)] = 64,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="PNG: a grid of images or a scatter plot; CSV or Parquet: rows, .txt too of texts; samples.png if "
            "neither is given, and standard output for texts.",
        ),
    ] = None,
    npy: Annotated[Path | None, typer.Option(help="All samples in the data's own units, as .npy.")] = None,
    num_steps: Annotated[int | None, typer.Option(help="Sampling steps.", min=1)] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="A class to draw, by its name or number, repeatable: they take turns."),
    ] = None,
    strength: Annotated[float, typer.Option(help="With --label: 1 is the class's law, above it typical ones.")] = 1.0,
    seed: Seed = 0,
    trust: Trust = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw samples from a trained energy; texts, one a line, on standard output."""
    from thalweg.bundle.bundle import Bundle
    from thalweg.bundle.classes import numbers_of
    from thalweg.bundle.files import load_as
    from thalweg.core.atomic_write import write_array
    from thalweg.core.check import fits_memory

    bundle = load_as(run, Bundle, device=device)
    shown = Path("samples.png") if out is None and npy is None and bundle.kind != "text" else out
    for path, suffixes in ((shown, KINDS[bundle.kind]), (npy, (".npy",))):
        if path is not None:
            console.writable(path, suffixes)
            console.refuse_overwrite(path, run)
    fits_memory(n, bundle.energy_shape)
    numbers = numbers_of(bundle, label or [], "--label")
    labels = [numbers[i % len(numbers)] for i in range(n)] if numbers else None
    x = bundle.sample(n, seed=seed, num_steps=num_steps, labels=labels, strength=strength).cpu()
    if npy is not None:
        write_array(npy, x)
        console.say(f"{n} samples in {npy}")
    if shown is not None:
        kept = _write_samples(bundle, x, shown)
        left = "" if npy else "; --npy FILE keeps all"
        console.say(f"{n} samples in {shown}" + (f" (the first {kept} drawn{left})" if kept < n else ""))
    if bundle.kind == "text" and out is None and npy is None and not as_json:
        console.print_lines(bundle.texts(x))
        return
    both = {"picture": str(shown)} if npy is not None and shown is not None else {}
    result = {
        "samples": n,
        "file": str(npy or shown) if npy or shown else None,
        **both,
        "shape": list(x.shape),
        "seed": seed,
    }
    if bundle.kind == "text":
        result["texts"] = bundle.texts(x)
    console.emit(result, as_json)


def _write_samples(bundle: "Bundle", x: "Tensor", out: Path) -> int:
    """A picture, a table with the names of columns and categories, or texts; how many of the samples are in it."""
    from thalweg.core.store import write_bytes
    from thalweg.data.score_table import write_table
    from thalweg.evaluate.pictures import grid, png, scatter

    if bundle.kind == "text":
        texts = bundle.texts(x)
        if out.suffix.lower() == ".txt":
            write_bytes(out, "".join(f"{text}\n" for text in texts).encode())
        else:
            write_table(out, {"text": texts, "energy": bundle.energy(x)})
        return len(x)
    if out.suffix.lower() != ".png":
        write_table(out, bundle.layout.decode(x))
        return len(x)
    some = x[:400] if bundle.kind == "image" else x[:10_000]
    write_bytes(out, grid(some) if bundle.kind == "image" else png(scatter(some, some[:0])))
    return len(some)
