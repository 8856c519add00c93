"""What a user asks of a run: checked, made into the settings of a run, and compared with a run that has begun."""

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
MINUTES = 10.0  # where neither the command, nor an override, nor the recipe has a budget
ARGUMENTS = ("data.name", "data.path", "data.hub", "data.header", "data.drop", "seed")
WHOLE = {"data": "data.held_out or data.limit", "train": "its keys, as in train.batch_size=32"}
ANOTHER = "resume without, or start another run"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks of `fit`. In a resumed run, what is not given is as when the run began.

    Args:
        data: The name of a data set, or a path.
        recipe: The name of a recipe, or a .yaml file. None: "dual" in a new run.
        path: A file or folder that holds a named set.
        hub: Whether the set is fetched from the Hugging Face Hub.
        minutes: Time to train, turned into steps at the start.
        steps: Steps to train, in place of minutes.
        seed: Of all randomness. None: 0 in a new run.
        checkpoint_every: Steps between checkpoints.
        overrides: Changes to the recipe, such as "train.batch_size=32".
        command: What made the run, for its config.
        header: Whether a CSV's first line names the columns. None: it must be clear from the lines.
        drop: Columns to leave out.
        device: Where the energy is trained, as `core.device.find_device` takes it. No property of the run: it may go on
            on another one.
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
    device: str = "auto"

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
            text = "must be given as an argument, not as an override"
            raise UserError(text, argument=key, hint="see `thalweg train --help`")
        if key in WHOLE:
            raise UserError("must be overridden by key, not whole", argument=key, hint=f"override {WHOLE[key]}")
    data = {"name": request.data, "path": request.path, "hub": request.hub, "held_out": None, "limit": None}
    data |= {"header": request.header, "drop": list(request.drop)}
    mine = [text for text in request.overrides if text.strip().startswith("data.")]
    return specs.override({"data": data}, mine)["data"]


def run_tree(request: Request, kind: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The run that a request describes on data of a kind, not yet validated; `defaults` are those of `train`."""
    name = recipe_name(request, kind)
    recipe = read_recipe(name)
    own = recipe.get("train", {})
    if not isinstance(own, dict) or {"data", "seed"} & recipe.keys():
        text = "must have a mapping under train, no data and no seed"
        raise UserError(text, argument=name, hint="give data and seed beside it")
    tree = {
        "transform": {"type": "thalweg.data.transform:Identity"},
        **recipe,
        "data": data_tree(request),
        "seed": request.seed or 0,
        "train": {**defaults, **own},
    }
    if isinstance(own.get("guard", {}), dict):
        tree["train"]["guard"] = {**defaults["guard"], **own.get("guard", {})}
    if request.checkpoint_every is not None:
        tree["train"]["checkpoint_every"] = request.checkpoint_every
    tree = specs.override(tree, request.overrides)
    tree["train"] |= _budget(request, name, own, tree["train"])
    if isinstance(tree.get("energy"), dict) and "shape" in tree["energy"]:
        raise UserError("must not be given, as it comes from the data", argument="energy.shape", hint="drop it")
    return tree


def _budget(request: Request, name: str, recipe: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    """Exactly one of steps and minutes, the other None: as asked for, else the recipe's, else ten minutes."""
    keys = {text.partition("=")[0].strip() for text in request.overrides}
    overridden = [key for key in BUDGETS if f"train.{key}" in keys]
    asked = [(f"--{key}", key, getattr(request, key)) for key in BUDGETS if getattr(request, key) is not None]
    asked += [(f"train.{key}", key, train[key]) for key in overridden if train[key] is not None]
    if len(asked) > 1:
        both = " and ".join(where for where, *_ in asked)
        raise UserError("must be one of the two, as either is the whole budget", argument=both, hint="give one")
    if overridden and not asked:
        text = "must not be null, as the run would have no budget"
        raise UserError(text, argument=f"train.{overridden[0]}", hint="give --minutes or --steps")
    given = [(name, key, recipe[key]) for key in BUDGETS if recipe.get(key) is not None]
    if len(given) > 1:
        text = "must have steps or minutes under train, not both"
        raise UserError(text, argument=name, hint="drop one")
    if not asked and not given and any(key in recipe for key in BUDGETS):
        raise UserError("must have steps or minutes under train", argument=name, hint="give --minutes or --steps")
    _, key, value = (asked or given or [("", "minutes", MINUTES)])[0]
    return {**dict.fromkeys(BUDGETS), key: value}


def compare(request: Request, config: Mapping[str, Any], folder: Path) -> None:
    """UserError for a request of something else than what the run in `folder`, whose config this is, began with."""
    run = config["run"]
    data = run["data"]
    if data["name"] != request.data:
        text = f"must hold a run on {request.data}, and holds one on {data['name']}"
        raise UserError(text, argument=str(folder), hint="name another folder with -o")

    def require(same: bool, argument: str, asked: object, began: object) -> None:
        if not same:
            text = f"must be {began!r}, as when the run in {folder} began"
            raise UserError(text, argument=argument, value=asked, hint=ANOTHER)

    places = {None if path is None else os.path.realpath(path) for path in (request.path, data["path"])}
    require(request.path is None or len(places) == 1, "path", request.path, data["path"])
    require(not request.hub or data["hub"], "hub", True, False)
    require(request.header in (None, data["header"]), "header", request.header, data["header"])
    require(not request.drop or [*request.drop] == data["drop"], "drop", [*request.drop], data["drop"])
    require(request.seed in (None, run["seed"]), "seed", request.seed, run["seed"])
    _compare_recipe(request, config, folder)
    # The very overrides it began with pass: a value may be stored in another form than the one it was given in.
    changed = list(request.overrides) != config.get("overrides")
    if changed and specs.plain(specs.override(run, request.overrides)) != run:
        text = f"must be those that the run in {folder} began with"
        raise UserError(text, argument="overrides", value=" ".join(request.overrides), hint=ANOTHER)
    budget = {"steps": request.steps, "minutes": request.minutes, "checkpoint_every": request.checkpoint_every}
    for name, asked in budget.items():
        require(asked in (None, run["train"][name]), name, asked, run["train"][name])


def _compare_recipe(request: Request, config: Mapping[str, Any], folder: Path) -> None:
    if request.recipe is None:
        return
    asked, stored = recipe_name(request, config["data"]["kind"]), config.get("recipe")
    file = asked.endswith((".yaml", ".yml"))
    if stored is None:
        text = f"must be left out, as the run in {folder} does not say which it began with"
        raise UserError(text, argument="recipe", value=request.recipe)
    if _digest(read_recipe(asked)) == config.get("recipe_sha256") or (asked == stored and not file):
        return
    what = f"{stored} as it was then" if asked == stored else stored
    text = f"must be {what}, as when the run in {folder} began"
    raise UserError(text, argument="recipe", value=request.recipe, hint=ANOTHER)
