"""Train the small bundles of a release: handwritten digits by `dual`, `jem` and `pcd`. They are not part of the wheel.

    python scripts/release_bundles.py -o build/release                 train: as long as the recipes say, an hour in all
    python scripts/release_bundles.py -o build/release --minutes 2     shorter
    python scripts/release_bundles.py -o build/release --check         verify a release: hashes, loading, sampling

Each bundle is a folder with its weights, card.md, report.html, evaluation.json and a manifest that seals them all, and
is read by `thalweg.load("build/release/digits-dual")`. `release.json` says how each was trained and what was measured,
`SHA256SUMS` has the hash of every file (`sha256sum -c SHA256SUMS`). The runs that they come from are not kept.
"""

import argparse
import hashlib
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import thalweg
from thalweg import api
from thalweg.core import store
from thalweg.run.fit import Request, fit

SUMS, LIST = "SHA256SUMS", "release.json"
SEED = 0


class Plan(NamedTuple):
    """A bundle of the release: its folder's name, and how it is trained."""

    name: str
    recipe: str
    data: str = "mnist"
    minutes: float | None = None
    steps: int | None = None
    overrides: Sequence[str] = ()


PLANS = tuple(Plan(f"digits-{recipe}", recipe) for recipe in ("dual", "jem", "pcd"))


def release(folder: Path, plans: Sequence[Plan] = PLANS, num_samples: int | None = None) -> None:
    """Train, measure and seal each bundle; then list them. The folder must be new."""
    folder.mkdir(parents=True)
    bundles = [made(plan, folder / plan.name, num_samples) for plan in plans]
    store.write_json(folder / LIST, {"thalweg": thalweg.__version__, "torch": torch.__version__, "bundles": bundles})
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    store.write_bytes(folder / SUMS, "".join(lines).encode())


def made(plan: Plan, folder: Path, num_samples: int | None) -> dict[str, Any]:
    """One bundle, and what the list says of it."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        request = Request(
            data=plan.data,
            recipe=plan.recipe,
            minutes=plan.minutes,
            steps=plan.steps,
            seed=SEED,
            overrides=plan.overrides,
            command=command(plan),
        )
        bundle = fit(request, run, tensorboard=False)
        figures = api.evaluate_run(bundle, run, num_samples=num_samples, seed=SEED)
        bundle.save_pretrained(folder)
        shutil.copy(run / "evaluation.json", folder / "evaluation.json")
    store.seal(folder)
    training = bundle.config["training"]
    return {
        "name": plan.name,
        "recipe": plan.recipe,
        "data": bundle.config["data"]["source"],
        "seed": SEED,
        "steps": training["steps"],
        "seconds": training["seconds"],
        "normalised": bundle.normalised,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "figures": dict(leaves(figures)),
    }


def command(plan: Plan) -> str:
    """What trains the same on the command line."""
    limits = [("--minutes", plan.minutes), ("--steps", plan.steps), ("--seed", SEED)]
    given = [word for name, value in limits if value is not None for word in (name, str(value))]
    return shlex.join(["thalweg", "train", plan.data, "--recipe", plan.recipe, *given, *plan.overrides])


def leaves(figures: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested figures, under dotted names; lists of them are in evaluation.json."""
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{key}.")
        elif isinstance(value, int | float):
            yield f"{above}{key}", value


def check(folder: Path) -> list[str]:
    """The names of the bundles, each of which is whole, loads and samples; ValueError or `DamagedFile` otherwise."""
    listed = dict(reversed(line.split("  ", 1)) for line in (folder / SUMS).read_text("utf-8").splitlines())
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {SUMS}
    wrong = sorted(there ^ set(listed)) or [name for name in sorted(there) if sha256(folder / name) != listed[name]]
    if wrong:
        raise ValueError(f"{folder}: must be as {SUMS} says, and is not: {', '.join(wrong)}")
    names = [entry["name"] for entry in store.read_json(folder / LIST)["bundles"]]
    for name in names:
        missing = {"card.md", "report.html", "config.json"} - set(store.verify(folder / name))
        if missing or not thalweg.load(folder / name).sample(2, seed=SEED).isfinite().all():
            raise ValueError(f"{folder / name}: must have a card, a report and finite samples")
    return names


def sha256(path: Path) -> str:
    """The hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", dest="out", type=Path, required=True, help="the folder of the release")
    parser.add_argument("--minutes", type=float, help="of training for each; the recipes' own if not given")
    parser.add_argument("--check", action="store_true", help="only verify what lies in the folder")
    given = parser.parse_args()
    if not given.check:
        release(given.out, [plan._replace(minutes=given.minutes) for plan in PLANS])
    print("whole, and each loads and samples:", *check(given.out))


if __name__ == "__main__":
    main()
