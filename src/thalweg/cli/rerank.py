"""The commands `thalweg rerank fit` and `thalweg rerank RUN CANDIDATES`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperGroup

from thalweg.cli import bad_rows, console, new_folder
from thalweg.cli.options import Device, Drop, Header, Json, Seed, Trust, table_options
from thalweg.core.errors import DamagedFile, UserError

if TYPE_CHECKING:
    from thalweg.apps.rerank.candidates import Candidates
    from thalweg.apps.rerank.preprocessing_search import NoiseSetting
    from thalweg.apps.rerank.reranker import EnergyReranker, Ranking

DEFAULT = "choose"


class _WithDefault(TyperGroup):
    """A group whose first word may be left out where it is `choose`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            args = [DEFAULT, *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_WithDefault,
    no_args_is_help=True,
    help="Keep the best of many candidates: `thalweg rerank RUN CANDIDATES --keep K`; `fit` learns what is best.",
)
VARIETIES = "maximal_marginal_relevance, or none: by energy alone."
KINDS = "npy, npz, a folder of images or, of rows, csv or parquet"


@app.command(epilog="Example: `thalweg rerank fit photos/ generated/ -o runs/judge`")
def fit(
    real: Annotated[Path, typer.Argument(help=f"Real data: {KINDS}.")],
    generated: Annotated[Path, typer.Argument(help=f"The generator's own draws, not the candidates: {KINDS}.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the re-ranker; one that is there is replaced.")],
    steps: Annotated[int, typer.Option(help="Training steps of each network, at most.", min=1)] = 800,
    ensemble: Annotated[int, typer.Option(help="Networks, each checked on rows it did not see.", min=2)] = 3,
    noise: Annotated[str, typer.Option(help="auto; or on both sides, in deviations of the data: 0.3 or 0.3:3.")] = (
        "auto"
    ),
    variety: Annotated[str, typer.Option(help=VARIETIES)] = "maximal_marginal_relevance",
    view: Annotated[
        str, typer.Option(help="auto; or what is shown of images: pixels, quantile_match or binarize.")
    ] = "auto",
    size: Annotated[
        int | None,
        typer.Option(help="Images: resize the shorter side to so many pixels, and crop the middle.", min=1, max=4096),
    ] = None,
    skip_bad: bad_rows.SkipBad = False,
    header: Header = None,
    drop: Drop = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Learn to tell the generator's draws from real data."""
    from thalweg.apps.rerank.reranker import EnergyReranker
    from thalweg.apps.rerank.settings import RatioSettings

    options: dict[str, Any] = {"steps": steps, "ensemble": ensemble, "noise": _noise(noise), "view": view}
    reranker = EnergyReranker(variety=cast(Any, variety), seed=seed, settings=RatioSettings(**options), device=device)
    x = _read(real, skip_bad, size=size, **table_options(header, drop))
    y = _read(generated, skip_bad, size=size, header=header, layout=x.layout)
    if size is not None and x.x.ndim != 4:
        raise UserError(f"is for images, and {real} holds rows", argument="--size", value=size, hint="leave it out")
    reranker.require_savable(out)
    replaces = (out / "config.json").exists()
    reranker.layout, reranker.size = x.layout, size
    reranker.fit(x.x, y.x, names=(str(real), str(generated)))
    reranker.save_pretrained(out)
    if replaces:
        console.say(f"{out}: replaces the re-ranker that was there")
    check = reranker.check_
    assert check is not None  # fitted
    console.say(
        f"{out}: on unseen rows {check.loss:.3f} ± {check.standard_error:.3f} nats (chance 0.693), AUC {check.auc:.3f} "
        "(chance 0.5)"
    )
    for choice in check.choices[reranker.variety]:
        console.say(
            f"1 of {1 / choice.share:g} unseen draws kept: nearer to unseen data by {choice.nearer:.4f} ± "
            f"{choice.standard_error:.4f} than a random choice, which is at {choice.random:.4f}"
            + ("" if choice.helps else "; no evidence")
        )
    tried = ", ".join(f"{t.view} {_words(t.noise)} {t.split_gain:.4f}" for t in check.trials)
    why = f"; by how much each way separates good draws from bad: {tried}" if tried else ""
    console.say(f"view {check.view}, noise {_words(check.noise)}{why}")
    result = {"run": str(out), "real": len(x.x), "generated": len(y.x), "skipped": [*x.skipped, *y.skipped]}
    choices = {name: [choice._asdict() for choice in found] for name, found in check.choices.items()}
    supported = len(check.supported(reranker.variety)) > 0
    result |= {**check._asdict(), "choices": choices, "beats_chance": check.beats_chance, "choice_helps": supported}
    console.emit(result, as_json)


@app.command(DEFAULT, epilog="Example: `thalweg rerank runs/judge generated/ --keep 100 -o best/`")
def choose(
    run: Annotated[Path, typer.Argument(help="Folder that `thalweg rerank fit` (or `thalweg train`) wrote.")],
    candidates: Annotated[Path, typer.Argument(help=f"Candidates: {KINDS}.")],
    keep: Annotated[int | None, typer.Option(help="How many to keep; all, in order, if not given.", min=1)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A new folder of images, or a .npy.")] = None,
    table: Annotated[Path, typer.Option(help="CSV or Parquet of all candidates, best first.")] = Path("ranked.csv"),
    variety: Annotated[str | None, typer.Option(help=VARIETIES)] = None,
    force: Annotated[bool, typer.Option("--force", help="Rank by energy even where that was not shown to help.")] = (
        False
    ),
    skip_bad: bad_rows.SkipBad = False,
    header: Header = None,
    drop: Drop = None,
    trust: Trust = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Rank candidates and keep the best."""
    from thalweg.bundle.bundle import Bundle
    from thalweg.bundle.inputs import of_images
    from thalweg.data.score_table import write_scores

    console.writable(table, (".csv", ".parquet"))
    for path in (table, out):
        if path is None:
            continue
        console.refuse_overwrite(path, candidates)
        if run.is_dir() and path.resolve().is_relative_to(run.resolve()):
            raise UserError("must lie outside of the re-ranker's folder", argument=str(path))
    if out is not None:
        _require_out(out)
    reranker = _reranker(run, variety, device)
    how = of_images(reranker.energy) if isinstance(reranker.energy, Bundle) else {"size": reranker.size}
    how |= {"shape": reranker.shape, "layout": reranker.layout, **table_options(header, drop)}
    found = _read(candidates, skip_bad, **how)
    if out is not None and not out.suffix and found.x.ndim != 4:
        raise UserError("must end in .npy, as the candidates are rows, not images", argument=str(out))
    ranking = reranker.ranked(found.x, keep, force=force)
    order, kept = ranking.order.tolist(), ranking.kept.tolist()
    with _written(out, found, candidates, kept):  # before the table, which promises that they are there
        write_scores(table, [found.names[i] for i in order], _columns(ranking))
    where = f", {len(kept)} kept in {out}" if out is not None else f", {len(kept)} kept"
    console.say(f"{len(found.x)} candidates in {table}{where}")
    result = {"candidates": len(found.x), "kept": [found.names[i] for i in kept], "indices": kept}
    result |= {"table": str(table), "out": None if out is None else str(out), "skipped": found.skipped}
    result |= {"strictness": None if ranking.strictness is None else ranking.strictness._asdict()}
    mean, mean_kept = float(ranking.energies.mean()), float(ranking.energies[ranking.kept].mean())
    console.emit(result | {"mean_energy": mean, "mean_energy_kept": mean_kept}, as_json)


def _noise(text: str) -> "str | float | tuple[float, ...]":
    """What `--noise` means: "auto", a number, or a pair."""
    if text == "auto":
        return text
    try:
        parts = tuple(float(part) for part in text.split(":"))
    except ValueError:
        message = "must be auto, a number such as 0.3, or two such as 0.3:3"
        raise UserError(message, argument="--noise", value=text) from None
    return parts[0] if len(parts) == 1 else parts


def _words(noise: "NoiseSetting") -> str:
    return ":".join(f"{part:g}" for part in noise) if isinstance(noise, tuple) else f"{noise:g}"


def _read(path: Path, skip_bad: bool, **how: Any) -> "Candidates":
    from thalweg.apps.rerank.candidates import read_candidates

    with bad_rows.offering_skip_bad(skip_bad):
        found = read_candidates(path, skip_bad=skip_bad, **how)
    for name, reason in found.skipped:
        console.say(f"skipped {name}: {reason}")
    return found


def _reranker(run: Path, variety: str | None, device: str) -> "EnergyReranker":
    """The fitted re-ranker, or one that ranks by a bundle's own energy, with a warning."""
    from thalweg.apps.rerank.reranker import EnergyReranker
    from thalweg.bundle.bundle import Bundle
    from thalweg.bundle.files import load, wrong_type

    try:
        found = load(run, device=device)
    except DamagedFile:
        raise
    except UserError as error:
        hints = filter(None, (error.hint, f"`thalweg rerank fit REAL GENERATED -o {run}` makes a re-ranker"))
        raise error.replace(hint="; ".join(hints)) from error
    if isinstance(found, Bundle):
        found = EnergyReranker(found)
        console.say(f"{run}: ranks by the model's own energy, a poor judge of samples; see `thalweg rerank fit`")
    if not isinstance(found, EnergyReranker):
        raise wrong_type(run, type(found), EnergyReranker)
    if variety is not None:
        found.variety = cast(Any, variety)  # checked by the next line
        found.require_variety()
    return found


def _columns(ranking: "Ranking") -> dict[str, Any]:
    """The table's columns in the order of the ranking."""
    import torch

    is_kept = torch.zeros(len(ranking.energies), dtype=torch.bool)
    is_kept[ranking.kept] = True
    order = ranking.order
    return {"rank": torch.arange(1, len(order) + 1), "kept": is_kept[order], "energy": ranking.energies[order]}


def _require_out(out: Path) -> None:
    if out.suffix.lower() == ".npy":
        console.writable(out, (".npy",))
        return
    if out.suffix or not new_folder.is_new_or_empty(out):
        raise UserError("must be a .npy file, or a folder that is empty or does not exist yet", argument=str(out))
    new_folder.require_writable(out)


@contextmanager
def _written(out: Path | None, found: "Candidates", source: Path, kept: list[int]) -> Iterator[None]:
    """The kept ones, best first: a .npy of arrays, or a folder of the very files (PNGs where they came as arrays).

    A folder is filled aside and put in place when the block has passed; where either fails, nothing is left of it.
    """
    from thalweg.core.atomic_write import write_array

    if out is None or out.suffix:
        if out is not None:
            write_array(out, found.x[kept])
        yield
        return
    with new_folder.filled_folder(out) as aside:
        _fill(aside, found, source, kept)
        yield


def _fill(folder: Path, found: "Candidates", source: Path, kept: list[int]) -> None:
    from thalweg.core.store import write_bytes
    from thalweg.evaluate.pictures import image_png

    digits = len(str(len(kept)))
    for rank, i in enumerate(kept, 1):
        if source.is_dir():
            name = found.names[i].replace("/", "-")  # of a folder in the folder
            write_bytes(folder / f"{rank:0{digits}}-{name}", (source / found.names[i]).read_bytes())
            continue
        write_bytes(folder / f"{rank:0{digits}}-{i}.png", image_png(found.x[i]))
