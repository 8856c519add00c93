"""What a user asks of a run: checked in itself, made into a run's tree, and held against a run that has begun."""

import hashlib
import json
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import thalweg
from thalweg.core import config as specs
from thalweg.core.errors import UserError

BUDGETS = ("steps", "minutes")
MINUTES = 10.0  # where neither the command, nor an override, nor the recipe says a word about the budget
ARGUMENTS = ("data.name", "data.path", "data.hub", "data.header", "data.drop", "seed")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks of `fit`: a data set, a recipe and what to change in it.

    `recipe`, `seed`, `header` and `drop` not given mean "dual", 0, what the file says and no column in a new run, and
    those of the run in a resumed one.
    """

    data: str | os.PathLike[str]
    recipe: str | os.PathLike[str] | None = None
    path: str | os.PathLike[str] | None = None
    hub: bool = False
    minutes: float | None = None
    steps: int | None = None
    seed: int | None = None
    checkpoint_every: int | None = None
    overrides: Sequence[str] = ()
    command: str | None = None
    header: bool | None = None
    drop: Sequence[str] = ()

    def __post_init__(self):
        for name in ("data", "recipe", "path"):
            object.__setattr__(self, name, _text(name, getattr(self, name)))
        if self.data is None:
            raise UserError("data=None: want the name of a data set, or a path")
        if self.seed is not None:
            object.__setattr__(self, "seed", _seed(self.seed))
        if isinstance(self.overrides, str) or not all(isinstance(text, str) for text in self.overrides):
            raise UserError(f"overrides={self.overrides!r}: want a list of texts, as in ['train.batch_size=32']")


def _text(name: str, value: Any) -> str | None:
    try:
        return None if value is None else os.fsdecode(value)
    except TypeError as error:
        raise UserError(f"{name}={value!r}: want a name or a path") from error


def _seed(value: Any) -> int:
    try:
        seed = operator.index(value)
    except TypeError as error:
        raise UserError(f"seed={value!r}: want an integer") from error
    if not 0 <= seed < 2**64:
        raise UserError(f"seed={seed}: want an integer of 64 bits, from 0 to {2**64 - 1}")
    return seed


def recipe_name(request: Request, kind: str) -> str:
    """`dual` means `dual-image` or `dual-vector` by the data's kind; a full name or a .yaml path stays."""
    name = os.fspath(request.recipe or "dual")
    if name.endswith((".yaml", ".yml")):
        return name
    known = {p.stem for p in (Path(thalweg.__file__).parent / "recipes").glob("*.yaml")}
    return f"{name}-{kind}" if f"{name}-{kind}" in known else name


def origin(request: Request, kind: str) -> dict[str, Any]:
    """What a run's config.json keeps of the request, so that a resumed run can be held against it."""
    name = recipe_name(request, kind)
    return {"recipe": name, "recipe_sha256": _digest(specs.recipe(name)), "overrides": list(request.overrides)}


def _digest(recipe: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()


def data_tree(request: Request) -> dict[str, Any]:
    """The section `data`, overrides applied; the recipe depends on the data's kind, so this comes first."""
    for text in request.overrides:
        key = text.partition("=")[0].strip()
        if key in ARGUMENTS:
            raise UserError(f"{key}: is an argument of its own, not an override; see `thalweg train --help`")
        if key == "data":
            raise UserError("data: cannot be replaced whole; override data.held_out or data.limit")
        if key == "train":
            raise UserError("train: cannot be replaced whole; override its keys, as in train.batch_size=32")
    data = {"name": request.data, "path": request.path, "hub": request.hub, "held_out": None, "limit": None}
    data |= {"header": request.header, "drop": list(request.drop)}
    mine = [text for text in request.overrides if text.strip().startswith("data.")]
    return specs.override({"data": data}, mine)["data"]


def run_tree(request: Request, kind: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The run that a request describes on data of a kind, not yet validated; `defaults` are those of `train`."""
    name = recipe_name(request, kind)
    recipe = specs.recipe(name)
    said = recipe.get("train", {})
    if not isinstance(said, dict) or {"data", "seed"} & recipe.keys():
        raise UserError(f"{name}: a recipe has a mapping under train, no data and no seed; those are given beside it")
    tree = {
        "transform": {"type": "thalweg.data.transform:Identity"},
        **recipe,
        "data": data_tree(request),
        "seed": request.seed or 0,
        "train": {**defaults, **said},
    }
    if isinstance(said.get("guard", {}), dict):
        tree["train"]["guard"] = {**defaults["guard"], **said.get("guard", {})}
    if request.checkpoint_every is not None:
        tree["train"]["checkpoint_every"] = request.checkpoint_every
    tree = specs.override(tree, request.overrides)
    tree["train"] |= _budget(request, name, said, tree["train"])
    if isinstance(tree.get("energy"), dict) and "shape" in tree["energy"]:
        raise UserError("energy.shape: comes from the data and cannot be given; drop it")
    return tree


def _budget(request: Request, name: str, recipe: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    """Exactly one of steps and minutes, the other None: as asked for, else the recipe's, else ten minutes."""
    overridden = [key for key in BUDGETS if _overridden(request, f"train.{key}")]
    asked = [(f"--{key}", key, getattr(request, key)) for key in BUDGETS if getattr(request, key) is not None]
    asked += [(f"train.{key}", key, train[key]) for key in overridden if train[key] is not None]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(where for where, *_ in asked)}: either is the whole budget, give one of them")
    if overridden and not asked:
        raise UserError(f"train.{overridden[0]}=null: leaves the run without a budget; give --minutes or --steps")
    given = [(name, key, recipe[key]) for key in BUDGETS if recipe.get(key) is not None]
    if len(given) > 1:
        raise UserError(f"{name}: train has both steps and minutes, and either is the whole budget; drop one of them")
    if not asked and not given and any(key in recipe for key in BUDGETS):
        raise UserError(f"{name}: train has neither steps nor minutes; give --minutes or --steps")
    _, key, value = (asked or given or [("", "minutes", MINUTES)])[0]
    return {**dict.fromkeys(BUDGETS), key: value}


def _overridden(request: Request, key: str) -> bool:
    return any(text.partition("=")[0].strip() == key for text in request.overrides)


def compare(request: Request, config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a request that asks of the run in `folder`, whose config this is, something else than it began with."""
    run = config["run"]
    began, data = f"{folder}: this run began with", run["data"]
    if data["name"] != request.data:
        raise UserError(f"{folder}: a run on {data['name']}, not on {request.data}; name another folder with -o")
    if request.path is not None and not _same_path(request.path, data["path"]):
        raise UserError(
            f"--data {request.path}: {began} {data['path'] or 'none'}; resume without, or start another run"
        )
    if request.hub and not data["hub"]:
        raise UserError(f"--hub: {began}out it; resume without, or start another run")
    if request.header not in (None, data["header"]):
        option = f"--{'' if request.header else 'no-'}header"
        raise UserError(f"{began} another header", argument=option, hint="resume without, or start another run")
    if request.drop and [*request.drop] != data["drop"]:
        dropped = ", ".join(data["drop"]) or "none"
        hint = "resume without, or start another run"
        raise UserError(f"{began} {dropped} left out", argument=f"--drop {' '.join(request.drop)}", hint=hint)
    if request.seed is not None and request.seed != run["seed"]:
        raise UserError(f"--seed {request.seed}: {began} seed {run['seed']}; resume without, or start another run")
    _compare_recipe(request, config, folder)
    # The very overrides it began with pass: a value may be stored in another form than the one it was given in.
    changed = list(request.overrides) != config.get("overrides")
    if changed and specs.plain(specs.override(run, request.overrides)) != run:
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


def _same_path(asked: str | os.PathLike[str], stored: str | None) -> bool:
    return stored is not None and os.path.realpath(asked) == os.path.realpath(stored)


def _compare_recipe(request: Request, config: Mapping[str, Any], folder: Path) -> None:
    if request.recipe is None:
        return
    asked, stored = recipe_name(request, config["data"]["kind"]), config.get("recipe")
    file = asked.endswith((".yaml", ".yml"))
    if stored is None:
        raise UserError(f"--recipe {request.recipe}: {folder} does not say which it began with; resume without")
    if _digest(specs.recipe(asked)) == config.get("recipe_sha256") or (asked == stored and not file):
        return
    what = f"{stored} as it was then" if asked == stored else stored
    raise UserError(
        f"--recipe {request.recipe}: {folder}: this run began with {what}; resume without, or start another run"
    )
