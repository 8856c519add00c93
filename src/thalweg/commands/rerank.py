"""The commands `thalweg rerank fit` and `thalweg rerank RUN CANDIDATES`."""

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from thalweg import console
from thalweg.core.errors import DamagedFile, UserError

if TYPE_CHECKING:
    from thalweg.apps.candidates import Candidates

DEFAULT = "choose"


class _WithDefault(TyperGroup):
    """A group whose first word may be left out where it is `choose`."""

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            args = [DEFAULT, *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_WithDefault,
    no_args_is_help=True,
    help="Keep the best of many candidates: `thalweg rerank RUN CANDIDATES --keep K`; `fit` learns what is best.",
)
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for machines.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out what cannot be read, and name it.")]
KINDS = "npy, npz, a folder of images or, of rows, csv or parquet"


@app.command(epilog="Example: `thalweg rerank fit photos/ generated/ -o runs/judge`")
def fit(
    real: Annotated[Path, typer.Argument(help=f"Real data: {KINDS}.")],
    generated: Annotated[Path, typer.Argument(help=f"The generator's own draws, not the candidates: {KINDS}.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the re-ranker; one that is there is replaced.")],
    steps: Annotated[int, typer.Option(help="Training steps of each network, at most.", min=1)] = 800,
    members: Annotated[int, typer.Option(help="Networks, each checked on rows it did not see.", min=2)] = 3,
    noise: Annotated[str, typer.Option(help="auto; or on both sides, in deviations of the data: 0.3 or 0.3:3.")] = (
        "auto"
    ),
    variety: Annotated[str, typer.Option(help="strata, repelled, determinantal or none.")] = "repelled",
    view: Annotated[str, typer.Option(help="auto; or what is shown of images: pixels, tone or ink.")] = "auto",
    skip_bad: SkipBad = False,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.", min=0, max=2**64 - 1)] = 0,
    as_json: Json = False,
) -> None:
    """Learn to tell the generator's draws from real data."""
    from thalweg.apps.ratio import RatioSettings
    from thalweg.apps.rerank import EnergyReranker

    options: dict[str, Any] = {"steps": steps, "members": members, "noise": _noise(noise), "view": view}
    settings = RatioSettings(**options)
    x, y = (_read(path, None, skip_bad) for path in (real, generated))
    reranker = EnergyReranker(variety=variety, seed=seed, settings=settings)  # pyright: ignore[reportArgumentType]
    reranker.require_savable(out)
    replaces = (out / "config.json").exists()
    reranker.fit(x.x, y.x, names=(str(real), str(generated)))
    reranker.save_pretrained(out)
    if replaces:
        console.say(f"{out}: replaces the re-ranker that was there")
    check = reranker.check_
    assert check is not None  # fitted
    console.say(
        f"{out}: on unseen rows {check.loss:.3f} ± {check.standard_error:.3f} nats (chance 0.693), AUC {check.auc:.3f} "
        f"(chance 0.5)" + ("" if check.beats_chance else "; no better than chance: its ranking is noise")
    )
    tried = ", ".join(f"{t.view} {_words(t.noise)} {t.parted:.4f}" for t in check.trials)
    why = f"; by how much each way parts good draws from bad: {tried}" if tried else ""
    console.say(f"view {check.view}, noise {_words(check.noise)}{why}")
    told = {"run": str(out), "real": len(x.x), "generated": len(y.x), "skipped": [*x.skipped, *y.skipped]}
    console.emit(told | check._asdict() | {"beats_chance": check.beats_chance}, as_json)


@app.command(DEFAULT, epilog="Example: `thalweg rerank runs/judge generated/ --keep 100 -o best/`")
def choose(
    run: Annotated[Path, typer.Argument(help="Folder that `thalweg rerank fit` (or `thalweg train`) wrote.")],
    candidates: Annotated[Path, typer.Argument(help=f"Candidates: {KINDS}.")],
    keep: Annotated[int | None, typer.Option(help="How many to keep; all, in order, if not given.", min=1)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A new folder of images, or a .npy.")] = None,
    table: Annotated[Path, typer.Option(help="CSV or Parquet of all candidates, best first.")] = Path("ranked.csv"),
    variety: Annotated[str | None, typer.Option(help="strata, repelled, determinantal or none.")] = None,
    skip_bad: SkipBad = False,
    as_json: Json = False,
) -> None:
    """Rank candidates and keep the best."""
    from thalweg.apps.table import write_scores

    console.writable(table, (".csv", ".parquet"))
    for path in (table, out):
        if path is None:
            continue
        console.apart(path, candidates)
        if run.is_dir() and path.resolve().is_relative_to(run.resolve()):
            raise UserError(f"{path}: in the re-ranker's folder, which holds the re-ranker alone; name another place")
    if out is not None:
        _require_out(out)
    reranker = _reranker(run, variety)
    found = _read(candidates, reranker.shape, skip_bad)
    if out is not None and not out.suffix and found.x.ndim != 4:
        raise UserError(f"{out}: the candidates are rows, not images; name a .npy file")
    energies, kept = reranker.ranked(found.x, keep)
    order, columns = _columns(energies, kept)
    with _written(out, found, candidates, kept.tolist()):  # before the table, which promises that they are there
        write_scores(table, [found.names[i] for i in order.tolist()], columns)
    where = f", {len(kept)} kept in {out}" if out is not None else f", {len(kept)} kept"
    console.say(f"{len(found.x)} candidates in {table}{where}")
    told = {"candidates": len(found.x), "kept": [found.names[i] for i in kept.tolist()], "indices": kept.tolist()}
    mean, mean_kept = float(energies.mean()), float(energies[kept].mean())
    told |= {"table": str(table), "out": None if out is None else str(out), "skipped": found.skipped}
    console.emit(told | {"mean_energy": mean, "mean_energy_kept": mean_kept}, as_json)


def _noise(text: str) -> Any:
    """What `--noise` means: "auto", a number, or a pair."""
    if text == "auto":
        return text
    try:
        parts = tuple(float(part) for part in text.split(":"))
    except ValueError:
        raise UserError(f"--noise {text}: want auto, a number such as 0.3, or two such as 0.3:3") from None
    return parts[0] if len(parts) == 1 else parts


def _words(noise: Any) -> str:
    return ":".join(f"{part:g}" for part in noise) if isinstance(noise, tuple) else f"{noise:g}"


def _read(path: Path, shape: tuple[int, ...] | None, skip_bad: bool) -> "Candidates":
    from thalweg.apps.candidates import read_candidates
    from thalweg.data.files import image_files

    try:
        found = read_candidates(path, shape, skip_bad=skip_bad)
    except UserError as error:
        if skip_bad or not path.is_dir() or not image_files(path):
            raise
        raise UserError(f"{error}; --skip-bad leaves out such files") from error
    for name, reason in found.skipped:
        console.say(f"skipped {name}: {reason}")
    return found


def _reranker(run: Path, variety: str | None) -> Any:
    """The fitted re-ranker, or one that judges by a bundle's own energy, with a word on what that is worth."""
    from thalweg.apps.bundle import Bundle, load
    from thalweg.apps.rerank import EnergyReranker

    try:
        found = load(run)
    except DamagedFile:
        raise
    except UserError as error:
        raise UserError(f"{error}; `thalweg rerank fit REAL GENERATED -o {run}` makes a re-ranker") from error
    if isinstance(found, Bundle):
        console.say(f"{run}: ranks by the model's own energy, a poor judge of samples; see `thalweg rerank fit`")
        found = EnergyReranker(found)
    if not isinstance(found, EnergyReranker):
        raise UserError(f"{run}: a detector, no re-ranker; fit one with `thalweg rerank fit`")
    if variety is not None:
        found.variety = variety  # pyright: ignore[reportAttributeAccessIssue]
        found.require_variety()
    return found


def _columns(energies: Any, kept: Any) -> tuple[Any, dict[str, Any]]:
    """The order of all candidates, best first, and the table's columns in it."""
    import torch

    is_kept = torch.zeros(len(energies), dtype=torch.bool)
    is_kept[kept] = True
    order = energies.sort(stable=True).indices
    return order, {"rank": torch.arange(1, len(order) + 1), "kept": is_kept[order], "energy": energies[order]}


def _require_out(out: Path) -> None:
    from thalweg.core.temporary import is_temporary  # what a killed process left is no hindrance, and stays

    if out.suffix.lower() == ".npy":
        console.writable(out, (".npy",))
        return
    if out.suffix or (out.exists() and not (out.is_dir() and all(map(is_temporary, out.iterdir())))):
        raise UserError(f"{out}: want a .npy file, or a folder that is empty or does not exist yet")
    elif not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist; make it first")
    else:
        console.writable_folder(out)


@contextmanager
def _written(out: Path | None, found: "Candidates", source: Path, kept: list[int]) -> Iterator[None]:
    """The kept ones, best first: a .npy of arrays, or a folder of the very files (PNGs where they came as arrays).

    A folder is filled aside and put in place when the block has passed; where either fails, nothing is left of it.
    """
    from thalweg.core import temporary
    from thalweg.core.store import write_errors
    from thalweg.core.stream import write_array

    if out is None or out.suffix:
        if out is not None:
            write_array(out, found.x[kept])
        yield
        return
    inside = out.is_dir()  # it may be a link or a disk of its own, and stays
    with ExitStack() as stack:
        with write_errors(out, None):
            aside = stack.enter_context(temporary.folder(out / "kept" if inside else out))
        _fill(aside, found, source, kept)
        yield
        with write_errors(out, None):
            if not inside:
                aside.rename(out)
            for path in sorted(aside.iterdir()) if inside else ():
                path.rename(out / path.name)


def _fill(folder: Path, found: "Candidates", source: Path, kept: list[int]) -> None:
    from PIL import Image

    from thalweg.core.store import write_bytes

    digits = len(str(len(kept)))
    for rank, i in enumerate(kept, 1):
        if source.is_dir():
            write_bytes(folder / f"{rank:0{digits}}-{found.names[i]}", (source / found.names[i]).read_bytes())
            continue
        pixels = (255 * found.x[i]).round().byte().permute(1, 2, 0).numpy()
        picture, held = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), io.BytesIO()
        picture.save(held, format="PNG")
        write_bytes(folder / f"{rank:0{digits}}-{i}.png", held.getvalue())
