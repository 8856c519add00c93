"""From a recipe to a bundle: the one place where applications train.

A run folder comes into being with `config.json`, grows by checkpoints, metrics and previews, and becomes a bundle when
its manifest is written at the end. Killed at any moment before, it resumes.
"""

import logging
import math
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import thalweg
from thalweg.apps.bundle import FORMAT, Bundle, load, read_config, write_bundle
from thalweg.core import config as specs
from thalweg.core import store
from thalweg.core.errors import DamagedFile, UserError
from thalweg.core.rng import generator
from thalweg.data.catalog import Dataset, as_float
from thalweg.data.catalog import load as load_data
from thalweg.data.loader import Loader
from thalweg.energy.spectral import frozen
from thalweg.objective.base import Batch
from thalweg.train.plan import NAME as PLAN
from thalweg.train.plan import Plan
from thalweg.train.settings import DataSettings, RunSettings, TrainSettings, checked, validate
from thalweg.train.state import FOLDER, TrainState
from thalweg.train.track import NAME as METRICS
from thalweg.train.track import Progress
from thalweg.train.trainer import Trainer

log = logging.getLogger("thalweg")
ANCHOR_ROWS = 20_000
PREVIEW_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks of `fit`: a data set, a recipe and what to change in it."""

    data: str
    recipe: str = "dual"
    path: str | None = None
    hub: bool = False
    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    checkpoint_every: int | None = None
    overrides: Sequence[str] = ()
    command: str | None = None


def fit(
    request: Request,
    folder: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = log.info,
    tensorboard: bool = True,
) -> Bundle:
    """Train and leave a bundle in `folder`; with `resume` go on with the run that is there.

    UserError: bad data, recipe or key, a folder in use, a resumed run on other data. Interrupted and Diverged as the
    trainer raises them; the folder then resumes.
    """
    folder = Path(folder)
    if request.minutes is not None and request.steps is not None:
        raise UserError("give --minutes or --steps, not both: either is the whole budget")
    started = (folder / "config.json").exists()
    if started and not resume:
        raise UserError(f"{folder}: holds a run already; add --resume to go on with it, or name another folder with -o")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file, where a folder for the run was wanted")
    if started and (folder / store.MANIFEST).exists():
        say(f"{folder} is complete; nothing left to do")
        return load(folder)
    try:
        config, data = _resumed(request, folder) if started else _new(request)
    except (KeyError, TypeError, AttributeError) as error:
        if not started:
            raise
        raise DamagedFile(f"{folder / 'config.json'}: not the configuration of a run ({error!r})") from error
    say(f"data: {data.source}")
    run = validate(config["run"])
    transform, trainer = _trainer(run, data, folder, progress, tensorboard)
    if not started:
        config["run"]["transform"] = transform.to_dict()  # fitted, so that an unfinished run can be read
        _claim(folder, config)
    trainer.hooks = (Previews(run, data.kind, transform, folder),)
    try:
        energy = trainer.fit()
    except UserError:
        if not started:
            _unclaim(folder)
        raise
    return _finish(config, energy, data, trainer, folder)


def settings(request: Request, kind: str) -> RunSettings:
    """The validated run that a request describes on data of a kind ("image", "vector")."""
    recipe = specs.recipe(_recipe_name(request.recipe, kind))
    if not isinstance(recipe.get("train", {}), dict) or "data" in recipe:
        raise UserError(f"{request.recipe}: a recipe has a mapping under train and no data; those are given beside it")
    tree = {
        "data": {
            "name": request.data,
            "path": request.path,
            "hub": request.hub,
            "held_out": None,
            "limit": None,
        },
        "transform": {"type": "thalweg.data.transform:Identity"},
        **recipe,
        "seed": request.seed,
    }
    tree["train"] = {**_train_defaults(), **tree.get("train", {})}
    if request.minutes is not None or request.steps is not None:
        tree["train"] |= {"minutes": request.minutes, "steps": request.steps}
    if request.checkpoint_every is not None:
        tree["train"]["checkpoint_every"] = request.checkpoint_every
    tree = specs.override(tree, request.overrides)
    budgets = {name for name in ("steps", "minutes") if _overridden(request, f"train.{name}")}
    if len(budgets) == 1:  # the recipe's budget gives way to the one asked for
        tree["train"]["minutes" if "steps" in budgets else "steps"] = None
    elif budgets and None not in (tree["train"]["steps"], tree["train"]["minutes"]):
        raise UserError("train.steps and train.minutes: either is the whole budget, give one of them")
    return validate(tree)


def _overridden(request: Request, key: str) -> bool:
    return any(text.partition("=")[0].strip() == key for text in request.overrides)


def _train_defaults() -> dict[str, Any]:
    return TrainSettings.model_validate({}).model_dump()


def _recipe_name(name: str, kind: str) -> str:
    """`dual` means `dual-image` or `dual-vector` by the data's kind; a full name or a .yaml path stays."""
    if name.endswith((".yaml", ".yml")):
        return name
    known = {p.stem for p in (Path(thalweg.__file__).parent / "recipes").glob("*.yaml")}
    return f"{name}-{kind}" if f"{name}-{kind}" in known else name


def _read(data: dict[str, Any], seed: int) -> Dataset:
    return load_data(
        data["name"],
        data=data["path"],
        hub=data["hub"],
        seed=seed,
        held_out=data["held_out"],
        limit=data["limit"],
    )


def _new(request: Request) -> tuple[dict[str, Any], Dataset]:
    first = {"name": request.data, "path": request.path, "hub": request.hub, "held_out": None, "limit": None}
    for key in ("data.name", "data.path", "data.hub", "seed"):
        if _overridden(request, key):
            raise UserError(f"{key}: is an argument of its own, not an override; see `thalweg train --help`")
    # The recipe depends on the data's kind, so the data come first.
    first = specs.override({"data": first}, [t for t in request.overrides if t.strip().startswith("data.")])["data"]
    data = _read(checked(DataSettings, first, "data").model_dump(), request.seed)
    run = settings(request, data.kind)
    objective, energy, sampler = _parts(run, data)
    energy_noisy = getattr(energy, "noisy", False)
    if getattr(sampler, "noisy", False) != energy_noisy:
        raise UserError(
            f"sampler.type={run.sampler['type']} does not sample from energy.type={run.energy['type']}; one takes a "
            "noise level and the other does not: change either"
        )
    if objective.noisy != energy_noisy:
        raise UserError(
            f"objective.type={run.objective['type']} wants an energy {'U(y, t)' if objective.noisy else 'E(x)'}, and "
            f"energy.type={run.energy['type']} is not one; change either"
        )
    _dry_run(objective, energy, sampler, torch.zeros(2, *data.shape))
    config = {
        "format": FORMAT,
        "thalweg": thalweg.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": request.command,
        "normalised": bool(objective.normalises and energy_noisy),
        "data": {
            "source": data.source,
            "fingerprint": data.fingerprint,
            "kind": data.kind,
            "shape": list(data.shape),
            "num_train": len(data.train),
            "num_held_out": len(data.held_out),
        },
        "run": run.model_dump(),
    }
    return config, data


def _parts(run: RunSettings, data: Dataset) -> tuple[Any, Any, Any]:
    """Objective, energy and sampler, built, and seen to be what they are called and to take the data."""
    objective, energy, sampler = (
        specs.build(run.objective),
        specs.build(run.energy, shape=data.shape),
        specs.build(run.sampler),
    )
    parts = (("objective", objective, "loss"), ("energy", energy, "forward"), ("sampler", sampler, "step"))
    for name, part, method in parts:
        if not callable(getattr(part, method, None)):
            raise UserError(f"{name}.type={getattr(run, name)['type']}: is no {name}, it has no {method}")
    x = torch.zeros(2, *data.shape)
    try:
        with torch.no_grad():
            u = energy(x, torch.ones(2)) if getattr(energy, "noisy", False) else energy(x)
        fits = u.shape == (2,)
    except (RuntimeError, ValueError, TypeError, IndexError):
        fits = False
    if not fits:
        shape = " x ".join(map(str, data.shape))
        raise UserError(f"energy.type={run.energy['type']}: does not take {data.kind} rows of {shape}; choose another")
    return objective, energy, sampler


def _dry_run(objective: Any, energy: Any, sampler: Any, x: torch.Tensor) -> None:
    """One loss and one sampling step on two rows, so that a senseless value is met before any work."""
    draws, faults = generator(0, "dry-run"), (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError)
    for name in ("objective", "sampler"):
        try:
            if name == "objective":
                state = objective.init(energy, x, draws)
                objective.loss(energy, state, Batch(x), objective.draw(state, Batch(x), draws, 0.0))
            else:
                state = sampler.init(energy, x)
                sampler.step(energy, state, sampler.draw(state, draws))
        except faults as error:
            reason = (str(error).splitlines() or [repr(error)])[0]
            raise UserError(f"{name}: a trial step with these values fails ({reason}); change them") from error
    levels = getattr(objective, "levels", None)
    if levels is None or not hasattr(energy, "t_min"):
        return
    wanted = (math.sqrt(energy.t_min), math.sqrt(energy.t_max))
    for name, part in (("objective.levels", levels), ("sampler", sampler)):
        found = (part.sigma_min, part.sigma_max)
        if not all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(found, wanted, strict=True)):
            raise UserError(
                f"{name}: sigma_min, sigma_max = {found[0]:g}, {found[1]:g} and the energy's are {wanted[0]:g}, "
                f"{wanted[1]:g}; give all three the same"
            )


def _resumed(request: Request, folder: Path) -> tuple[dict[str, Any], Dataset]:
    config = read_config(folder)
    run = config["run"]
    if run["data"]["name"] != request.data:
        raise UserError(f"{folder}: a run on {run['data']['name']}, not on {request.data}; name another folder with -o")
    if specs.override(run, request.overrides) != run:
        raise UserError(
            f"{folder}: an override differs from what this run began with ({' '.join(request.overrides)}); resume "
            "without, or start another run"
        )
    for name in ("steps", "minutes", "checkpoint_every"):
        asked = getattr(request, name)
        if asked is not None and run["train"][name] != asked:
            raise UserError(
                f"--{name.replace('_', '-')} {asked}: this run was planned with {name}={run['train'][name]} and its "
                "schedule depends on it; resume without, or start another run"
            )
    data = _read(run["data"], run["seed"])
    if data.fingerprint != config["data"]["fingerprint"]:
        raise UserError(
            f"{folder}: the data have changed since the run began ({data.source}); put back those it began with"
        )
    return config, data


def _claim(folder: Path, config: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the folder ({error.strerror})") from error
    store.write_json(folder / "config.json", config)


def _unclaim(folder: Path) -> None:
    """Take back what a run refused before its first checkpoint has written; whatever else is there stays."""
    if (folder / FOLDER).exists():
        return
    for name in ("config.json", PLAN, METRICS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _trainer(
    run: RunSettings, data: Dataset, folder: Path, progress: Progress | None, tensorboard: bool
) -> tuple[Any, Trainer]:
    some = as_float(data.train[:ANCHOR_ROWS])
    transform = specs.build(run.transform).fit(some)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)  # constructors draw the first weights from the global generator
        energy: nn.Module = specs.build(run.energy, shape=data.shape)
    if hasattr(energy, "fit"):
        energy.fit(transform.forward(some))  # pyright: ignore[reportCallIssue]
    loader = Loader(data.train, data.train_labels, batch_size=run.train.batch_size, seed=run.seed)
    trainer = Trainer(
        energy=energy,
        objective=specs.build(run.objective),
        loader=loader,
        transform=transform,
        settings=run.train,
        folder=folder,
        seed=run.seed,
        progress=progress,
        tensorboard=tensorboard,
    )
    return transform, trainer


def _finish(config: dict[str, Any], energy: nn.Module, data: Dataset, trainer: Trainer, folder: Path) -> Bundle:
    plan = Plan.load(folder)
    config = {
        **config,
        "precision": plan.precision if plan else "fp32",
        "training": {"steps": trainer.state.step, "seconds": round(trainer.state.seconds, 1)},
    }
    bundle = Bundle(config, dict(energy.state_dict()), None, folder)
    held_out = bundle.energy(as_float(data.held_out))
    write_bundle(folder, config, energy.state_dict(), held_out)
    store.write_bytes(folder / "card.md", card(config).encode("utf-8", "backslashreplace"))
    return load(folder)


def card(config: dict[str, Any]) -> str:
    """A model card in the Hub's form: what the bundle is, from which data, by which command."""
    data, training = config["data"], config.get("training", {})
    claim = "normalised: -E(x) is log p(x) in nats" if config["normalised"] else "its additive constant is unknown"
    return (
        "---\nlibrary_name: thalweg\ntags: [energy-based-model]\n---\n"
        f"# An energy of {config['run']['data']['name']}\n\n"
        f"Data: {data['source']}.\n\n"
        f"The energy is {claim}. Trained {training.get('steps')} steps in {training.get('seconds')} s with "
        f"thalweg {config['thalweg']}, torch {config['torch']}.\n\n"
        f"Command: `{config['command']}`\n\n"
        "```python\nimport thalweg\nbundle = thalweg.load('PATH')\nbundle.energy(x); bundle.sample(16)\n```\n"
    )


class Previews:
    """A hook that draws `preview.png`: after 20 s, and then each time the training time has grown by half."""

    def __init__(self, run: RunSettings, kind: str, transform: Any, folder: Path):
        self.sampler = specs.build(run.sampler)
        self.kind, self.transform, self.folder = kind, transform, folder
        self.next_seconds = PREVIEW_SECONDS

    def __call__(self, state: TrainState, plan: Plan) -> None:
        """Draw if it is time. Randomness is addressed and weights are only read, so training is not touched."""
        last = state.step == plan.num_steps
        if state.seconds < self.next_seconds and not last:
            return
        self.next_seconds = max(self.next_seconds * 1.5, state.seconds)
        from thalweg.apps.preview import draw

        try:
            with frozen(state.average) as energy:
                draw(energy, self.sampler, self.kind, self.transform, self.folder / "preview.png", plan.precision)
        except (ValueError, TypeError, RuntimeError, OSError) as error:  # a picture must not end a run
            log.warning("no preview: %s", error)
