"""The command `thalweg landscape`: pictures of an energy."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli import console
from thalweg.cli.options import Device, Drop, Header, Json, Run, Seed, Trust, table_options

if TYPE_CHECKING:
    from thalweg.apps.landscape.paths import Path as EnergyPath
    from thalweg.apps.landscape.survey import Survey

EXAMPLE = "Example: `thalweg landscape runs/moons -o landscape.html`"


def landscape(
    run: Run,
    out: Annotated[
        Path, typer.Option("--out", "-o", help=".png: a figure; .gif: chains descending; .html: a surface that turns.")
    ] = Path("landscape.png"),
    examples: Annotated[
        Path | None, typer.Option(help="File whose first three rows span the plane; unseen data if not given.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Grid lines along the longer side.", min=8, max=400)] = None,
    min_depth: Annotated[float, typer.Option(help="Nats; basins less deep join a neighbour.", min=0)] = 1.0,
    seed: Seed = 0,
    header: Header = None,
    drop: Drop = None,
    trust: Trust = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw the energy: contours with data, chains and basins; energies along paths, of chains, and of corruptions.

    2-D data are drawn over their own plane, images and wider tables over the plane through three examples.
    """
    from thalweg.apps.landscape.picture_files import write
    from thalweg.apps.landscape.survey import survey
    from thalweg.bundle.bundle import Bundle
    from thalweg.bundle.dataset import data_of
    from thalweg.bundle.files import load_as
    from thalweg.bundle.inputs import in_float32, read_rows, require_numbers
    from thalweg.data.catalog import as_float

    bundle = load_as(run, Bundle, device=device)
    require_numbers(bundle, "a landscape")
    console.writable(out, (".png", ".gif", ".html"))
    console.refuse_overwrite(out, examples, run)
    options = table_options(header, drop)
    rows = [] if examples is None else [as_float(read_rows(bundle, examples, **options).x)]
    data = data_of(bundle)
    bundle, shift, (held_out, *rows) = in_float32(bundle, as_float(data.held_out), *rows)
    if shift is not None:
        console.say(f"places are relative to {', '.join(f'{v:.9g}' for v in shift.tolist())}")
    console.say("looking at the landscape …")
    found = survey(
        bundle,
        held_out,
        labels=data.held_out_labels,
        examples=rows[0] if rows else None,
        size=size,
        min_depth=min_depth,
        seed=seed,
    )
    write(out, bundle, found, seed=seed)
    holes = sum(surface.num_holes for surface in found.surfaces)
    if holes:
        console.say(f"{holes} cells have no finite energy; they are drawn grey")
    minima = len(found.basins.minima)
    console.say(f"{out}: {minima} basin{'s' * (minima != 1)}")
    console.emit({"run": str(run), "file": str(out), "seed": seed, **_figures(found)}, as_json)


def _figures(found: "Survey") -> dict[str, Any]:
    """What the picture shows, in numbers; null where there is none or it is not finite."""

    def number(value: Any) -> float | None:
        value = float(value)
        return value if math.isfinite(value) else None

    def heights(path: "EnergyPath | None") -> dict[str, Any] | None:
        return None if path is None else {"barrier": number(path.barrier), "highest": number(path.u.max())}

    return {
        "kind": found.kind,
        "normalised": found.normalised,
        "sigmas": found.sigmas,
        "holes": [surface.num_holes for surface in found.surfaces],
        "basins": [
            {"minimum": place, "energy": number(u), "share": number((found.basins.label == k).double().mean())}
            for k, (place, u) in enumerate(zip(found.basins.minima.tolist(), found.basins.u, strict=True))
        ],
        "passes": [{"basins": p.basins, "energy": number(p.u), "place": p.place.tolist()} for p in found.basins.passes],
        "straight": heights(found.straight),
        "detour": heights(found.detour),
        "median_energy": {name: number(u.nanmedian()) for name, u in found.histograms.items()},
    }
