"""What a user asks of a run: checked in itself, made into a run's tree, and held against a run that has begun."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import thalweg
from thalweg.core import check
from thalweg.core import config as specs
from thalweg.core.errors import UserError
from thalweg.core.recipes import read_recipe

BUDGETS = ("steps", "minutes")
MINUTES = 10.0  # where neither the command, nor an override, nor the recipe says a word about the budget
ARGUMENTS = ("data.name", "data.path", "data.hub", "data.header", "data.drop", "seed")
WHOLE = {"data": "data.held_out or data.limit", "train": "its keys, as in train.batch_size=32"}
ANOTHER = "resume without, or start another run"


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
            raise UserError("must be the name of a data set, or a path", argument="data")
        if self.seed is not None:
            object.__setattr__(self, "seed", check.whole("seed", self.seed, 0, 2**64 - 1))
        if isinstance(self.overrides, str) or not all(isinstance(text, str) for text in self.overrides):
            condition = "must be a list of texts, as in ['train.batch_size=32']"
            raise UserError(condition, argument="overrides", value=self.overrides)


def _text(name: str, value: Any) -> str | None:
    try:
        return None if value is None else os.fsdecode(value)
    except TypeError as error:
        raise UserError("must be a name or a path", argument=name, value=value) from error


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
    return {"recipe": name, "recipe_sha256": _digest(read_recipe(name)), "overrides": list(request.overrides)}


def _digest(recipe: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()


def data_tree(request: Request) -> dict[str, Any]:
    """The section `data`, overrides applied; the recipe depends on the data's kind, so this comes first."""
    for text in request.overrides:
        key = text.partition("=")[0].strip()
        if key in ARGUMENTS:
            text = "is an argument of its own, not an override"
            raise UserError(text, argument=key, hint="see `thalweg train --help`")
        if key in WHOLE:
            raise UserError("cannot be replaced whole", argument=key, hint=f"override {WHOLE[key]}")
    data = {"name": request.data, "path": request.path, "hub": request.hub, "held_out": None, "limit": None}
    data |= {"header": request.header, "drop": list(request.drop)}
    mine = [text for text in request.overrides if text.strip().startswith("data.")]
    return specs.override({"data": data}, mine)["data"]


def run_tree(request: Request, kind: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The run that a request describes on data of a kind, not yet validated; `defaults` are those of `train`."""
    name = recipe_name(request, kind)
    recipe = read_recipe(name)
    said = recipe.get("train", {})
    if not isinstance(said, dict) or {"data", "seed"} & recipe.keys():
        text = "a recipe has a mapping under train, no data and no seed"
        raise UserError(text, argument=name, hint="give data and seed beside it")
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
        raise UserError("comes from the data and cannot be given", argument="energy.shape", hint="drop it")
    return tree


def _budget(request: Request, name: str, recipe: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    """Exactly one of steps and minutes, the other None: as asked for, else the recipe's, else ten minutes."""
    overridden = [key for key in BUDGETS if _overridden(request, f"train.{key}")]
    asked = [(f"--{key}", key, getattr(request, key)) for key in BUDGETS if getattr(request, key) is not None]
    asked += [(f"train.{key}", key, train[key]) for key in overridden if train[key] is not None]
    if len(asked) > 1:
        both = " and ".join(where for where, *_ in asked)
        raise UserError("either is the whole budget", argument=both, hint="give one of them")
    if overridden and not asked:
        text = "null leaves the run without a budget"
        raise UserError(text, argument=f"train.{overridden[0]}", hint="give --minutes or --steps")
    given = [(name, key, recipe[key]) for key in BUDGETS if recipe.get(key) is not None]
    if len(given) > 1:
        text = "train has both steps and minutes, and either is the whole budget"
        raise UserError(text, argument=name, hint="drop one of them")
    if not asked and not given and any(key in recipe for key in BUDGETS):
        raise UserError("train has neither steps nor minutes", argument=name, hint="give --minutes or --steps")
    _, key, value = (asked or given or [("", "minutes", MINUTES)])[0]
    return {**dict.fromkeys(BUDGETS), key: value}


def _overridden(request: Request, key: str) -> bool:
    return any(text.partition("=")[0].strip() == key for text in request.overrides)


def compare(request: Request, config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a request that asks of the run in `folder`, whose config this is, something else than it began with."""
    run = config["run"]
    began, data = f"the run in {folder} began with", run["data"]
    if data["name"] != request.data:
        text = f"a run on {data['name']}, not on {request.data}"
        raise UserError(text, argument=str(folder), hint="name another folder with -o")
    if request.path is not None and not _same_path(request.path, data["path"]):
        raise UserError(f"{began} {data['path'] or 'none'}", argument="path", value=request.path, hint=ANOTHER)
    if request.hub and not data["hub"]:
        raise UserError(f"{began}out it", argument="hub", value=True, hint=ANOTHER)
    if request.header not in (None, data["header"]):
        raise UserError(f"{began} another", argument="header", value=request.header, hint=ANOTHER)
    if request.drop and [*request.drop] != data["drop"]:
        left_out = ", ".join(data["drop"]) or "nothing"
        raise UserError(f"{began} {left_out} left out", argument="drop", value=[*request.drop], hint=ANOTHER)
    if request.seed is not None and request.seed != run["seed"]:
        raise UserError(f"{began} seed {run['seed']}", argument="seed", value=request.seed, hint=ANOTHER)
    _compare_recipe(request, config, folder)
    # The very overrides it began with pass: a value may be stored in another form than the one it was given in.
    changed = list(request.overrides) != config.get("overrides")
    if changed and specs.plain(specs.override(run, request.overrides)) != run:
        text = f"an override differs from what this run began with ({' '.join(request.overrides)})"
        raise UserError(text, argument=str(folder), hint=ANOTHER)
    for name in ("steps", "minutes", "checkpoint_every"):
        asked = getattr(request, name)
        if asked is not None and run["train"][name] != asked:
            planned = f"this run was planned with {name}={run['train'][name]} and its schedule depends on it"
            raise UserError(planned, argument=name, value=asked, hint=ANOTHER)


def _same_path(asked: str | os.PathLike[str], stored: str | None) -> bool:
    return stored is not None and os.path.realpath(asked) == os.path.realpath(stored)


def _compare_recipe(request: Request, config: Mapping[str, Any], folder: Path) -> None:
    if request.recipe is None:
        return
    asked, stored = recipe_name(request, config["data"]["kind"]), config.get("recipe")
    file = asked.endswith((".yaml", ".yml"))
    if stored is None:
        text = f"the run in {folder} does not say which it began with"
        raise UserError(text, argument="recipe", value=request.recipe, hint="resume without")
    if _digest(read_recipe(asked)) == config.get("recipe_sha256") or (asked == stored and not file):
        return
    what = f"{stored} as it was then" if asked == stored else stored
    raise UserError(f"the run in {folder} began with {what}", argument="recipe", value=request.recipe, hint=ANOTHER)
