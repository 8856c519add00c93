"""The command `thalweg inpaint`: several completions of damaged images, ranked."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thalweg.cli import bad_rows, console, new_folder
from thalweg.cli.options import Device, Drop, Header, Json, Run, Seed, Trust, table_options
from thalweg.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from thalweg.apps.inpaint.operators import Operator
    from thalweg.apps.inpaint.ranking import Completions
    from thalweg.bundle.bundle import Bundle

EXAMPLE = "Example: `thalweg inpaint runs/digits --image torn.png --mask right-half -n 8 -o repaired.png`"
NOISE = "Standard deviation of the noise on what is given; with --operator at least 0.0011 for images of 8 bits."
SHOWN = 16  # images in a picture
PICTURES, TABLES = (".png", ".npy"), (".npy", ".csv", ".parquet")  # files of images, of rows
MISFIT = 0.02  # root mean square, in pixels of [0, 1]


def inpaint(
    run: Run,
    image: Annotated[
        Path, typer.Option("--image", help="An image, a folder of them, npy or npz; of rows a table too.")
    ],
    mask: Annotated[
        str | None,
        typer.Option(
            "--mask",
            help="What is missing: a .png or .npy (white is missing), box:LEFT,TOP,RIGHT,BOTTOM, right-half, "
            "left-half, top-half, bottom-half, random:SHARE, all or none; of rows a table of marks, or gaps: what it "
            "lacks.",
        ),
    ] = None,
    operator: Annotated[
        str | None, typer.Option(help="In place of a mask, how the image was made: blur:WIDTH or downsample:FACTOR.")
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="PNG: a table of pictures; .npy: (n, B, C, H, W); of rows also CSV or Parquet; else a folder of PNG.",
        ),
    ] = Path("inpainted.png"),
    n: Annotated[int, typer.Option("-n", help="Completions of each image.", min=1)] = 4,
    noise: Annotated[float, typer.Option(help=NOISE, min=0)] = 0.0,
    rank_by: Annotated[
        str, typer.Option(help="What comes first: the least expected_error, or the lowest energy.")
    ] = "expected_error",
    seed: Seed = 0,
    skip_bad: bad_rows.SkipBad = False,
    header: Header = None,
    drop: Drop = None,
    trust: Trust = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Complete images, or rows of numbers, where a mask says what is missing, several times, best first."""
    from thalweg.apps.inpaint import inpaint as app
    from thalweg.apps.inpaint.damaged_images import ROUNDING, read_damaged_images
    from thalweg.apps.inpaint.masks import observed as read_mask
    from thalweg.bundle.bundle import Bundle
    from thalweg.bundle.files import load_as
    from thalweg.bundle.inputs import of_images, require_numbers
    from thalweg.data.validate import as_float

    if (mask is None) == (operator is None):
        hint = "give one: what is missing, or how the image was made"
        raise UserError("must be one of the two", argument="--mask and --operator", hint=hint)
    bundle = load_as(run, Bundle, device=device)
    require_numbers(bundle, "in-painting")
    if bundle.kind != "image" and out.suffix.lower() not in TABLES:
        text = f"must end in {' or '.join(TABLES)}, as the model is of rows, not of images"
        raise UserError(text, argument=str(out))
    app.check_rank_by(rank_by)
    _check_out(out, TABLES if bundle.kind == "vector" else PICTURES, image, run, None if mask is None else Path(mask))
    linear_map = None if operator is None else _operator(operator)
    shape = bundle.shape if linear_map is None else _shape_after(linear_map, bundle.shape)
    how = {**of_images(bundle), "layout": bundle.layout, **table_options(header, drop), "shape": shape}
    if linear_map is not None:
        how["size"] = None  # another size is what the operator leaves
    with bad_rows.offering_skip_bad(skip_bad):
        images = read_damaged_images(image, skip_bad=skip_bad, flat=linear_map is not None, **how)
    known = None
    if linear_map is None:
        if mask == "gaps" and bundle.kind == "vector":
            known = images.present
        else:
            known = read_mask(mask or "", bundle.shape, images.count, seed=seed, layout=bundle.layout)
    images = images.usable(known, skip_bad)
    for line in images.notes:
        console.say(line)
    names, x = images.names, as_float(images.x)
    if linear_map is None:
        assert known is not None  # the mask
        known = known[images.rows]
        if bare := int(known.flatten(1).all(1).sum()):
            all_of = console.count(len(x), images.noun)
            console.say(f"nothing is missing of {bare} of {all_of}; they come back as they are")
        found = app.inpaint(bundle, x, known, n=n, seed=seed, noise=noise, rank_by=rank_by)  # pyright: ignore[reportArgumentType]
    else:
        if images.rounded and noise < ROUNDING:
            noise = ROUNDING
            console.say(f"pixels of 8 bits are rounded by {noise:.4f}, which is taken for their noise")
        found = app.restore(bundle, x.flatten(1), linear_map, n=n, seed=seed, noise=noise, rank_by=rank_by)  # pyright: ignore[reportArgumentType]
        _warn_of_misfit(operator, linear_map, x, found, noise)
    if out.suffix.lower() in TABLES[1:]:
        _write_rows(bundle, out, names, found)
    else:
        _write(out, names, x, known, found)
    alone = "; with -n 2 or more, also where they differ" if n == 1 and out.suffix.lower() != ".npy" else ""
    left = f", {len(images.skipped)} of {images.count} left out" if images.skipped else ""
    console.say(f"{console.count(n, 'completion')} of {console.count(len(x), images.noun)} in {out}{left}{alone}")
    result: dict[str, Any] = {
        "file": str(out),
        "images": names,
        "skipped": images.skipped,
        "ranking": found.ranking.T.tolist(),
        "energies": found.energies.T.tolist(),
        "pairwise_distance": found.pairwise_distance.tolist() if n > 1 else None,
        "missing": None if known is None else (~known).float().flatten(1).mean(1).tolist(),
        "seed": seed,
    }
    console.emit({k: _finite(v) if isinstance(v, list) and k != "images" else v for k, v in result.items()}, as_json)


def _warn_of_misfit(text: str | None, linear_map: "Operator", x: "Tensor", found: "Completions", noise: float) -> None:
    """Say so where no completion agrees with what was given: the images were not made by that operator."""
    residual = (linear_map(found.images[0]) - x.flatten(1)).square().mean(1).sqrt()
    odd = int((residual > 3 * noise + MISFIT).sum())
    if odd:
        console.say(
            f"{console.count(odd, 'image')}: up to {float(residual.max()):.2g} from what --operator makes of the "
            f"completion; is it {text}? If it is noisy, give --noise"
        )


def _operator(text: str) -> "Operator":
    from thalweg.apps.inpaint.operators import Blur, Downsample

    kind, _, value = text.partition(":")
    try:
        if kind == "blur":
            return Blur(width=float(value))
        if kind == "downsample":
            return Downsample(factor=int(value))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
    condition = "must be blur:WIDTH in pixels or downsample:FACTOR, as blur:1.5 or downsample:4"
    raise UserError(condition, argument="--operator", value=text)


def _shape_after(linear_map: "Operator", shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the images that the operator gives; UserError where it does not take such images."""
    import torch

    from thalweg.apps.inpaint.operators import Downsample

    linear_map(torch.zeros(1, *shape))
    factor = linear_map.factor if isinstance(linear_map, Downsample) else 1
    return (shape[0], shape[1] // factor, shape[2] // factor)


def _check_out(out: Path, files: tuple[str, ...], *inputs: Path | None) -> None:
    """UserError where it cannot be written, holds other files, or is one of the inputs or a folder where they lie."""
    console.refuse_overwrite(out, *inputs)
    if out.suffix.lower() in files:
        console.writable(out, files)
        return
    console.refuse_overwrite(out, *(path.parent for path in inputs if path is not None and path.is_file()))
    if out.suffix or out == Path() or not new_folder.is_new_or_empty(out):
        text = "must be a .png, an .npy, or a folder that is empty or does not exist yet"
        raise UserError(text, argument=str(out))
    new_folder.require_writable(out)


def _write_rows(bundle: "Bundle", out: Path, names: list[str], found: "Completions") -> None:
    """A table of the completions of rows, the best of each row first, with the names of columns and categories."""
    from thalweg.data.score_table import write_table

    n = len(found.images)
    about = {"row": [name for name in names for _ in range(n)], "rank": [*range(1, n + 1)] * len(names)}
    columns = bundle.layout.decode(found.images.transpose(0, 1).flatten(0, 1))
    write_table(out, {**{k: v for k, v in about.items() if k not in columns}, **columns})


def _write(out: Path, names: list[str], x: "Tensor", known: "Tensor | None", found: "Completions") -> None:
    from thalweg.apps.inpaint.figure import repairs
    from thalweg.core.atomic_write import write_array
    from thalweg.core.store import write_bytes
    from thalweg.evaluate.pictures import png

    if out.suffix.lower() == ".npy":
        return write_array(out, found.images)
    if out.suffix.lower() == ".png":
        known = None if known is None else known[:SHOWN]
        uncertainty = found.uncertainty[:SHOWN] if len(found.images) > 1 else None
        picture = repairs(x[:SHOWN], found.images[:, :SHOWN], uncertainty, observed=known)
        return write_bytes(out, png(picture))
    with new_folder.filled_folder(out) as aside:
        _fill(aside, names, found)


def _fill(folder: Path, names: list[str], found: "Completions") -> None:
    """A PNG of each completion, of each image where they differ, and a table of all."""
    from thalweg.core.store import write_bytes
    from thalweg.evaluate.pictures import grid

    table = io.StringIO()
    lines = csv.writer(table)
    lines.writerow(["image", "rank", "ranking", "energy", "file"])
    for i, (name, stem) in enumerate(zip(names, _stems(names), strict=True)):
        (folder / stem).parent.mkdir(parents=True, exist_ok=True)
        for k in range(len(found.images)):
            file = f"{stem}-{k + 1}.png"
            write_bytes(folder / file, grid(found.images[k, i : i + 1], scale=1, gap=0))
            lines.writerow([name, k + 1, *(f"{float(u[k, i]):.6g}" for u in (found.ranking, found.energies)), file])
        if len(found.images) > 1:
            write_bytes(folder / f"{stem}-uncertainty.png", grid(2 * found.uncertainty[i : i + 1], scale=1, gap=0))
    write_bytes(folder / "completions.csv", table.getvalue().encode())


def _stems(names: list[str]) -> list[str]:
    """File names without their endings, where that leaves them distinct."""
    stems = [Path(name).with_suffix("").as_posix() for name in names]
    return stems if len(set(stems)) == len(stems) else [name.replace(".", "-") for name in names]


def _finite(values: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(values, list):
        return [_finite(v) for v in values]
    return values if not isinstance(values, float) or abs(values) < float("inf") else None
