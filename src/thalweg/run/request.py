"""What a user asks of a run: checked, made into the settings of a run, and compared with a run that has begun."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import thalweg
from thalweg.core import check
from thalweg.core import config as specs
from thalweg.core.errors import UserError, shown
from thalweg.core.recipes import read_recipe
from thalweg.data.options import LARGEST_SIZE
from thalweg.energy.base import Anchored, NoiseConditional
from thalweg.energy.outcomes import Conditional
from thalweg.run.given import Given
from thalweg.training.settings import DataSettings
from thalweg.training.signals import MonitorSettings

KINDS = {"image": "images", "vector": "rows of numbers", "text": "texts"}  # of data, in words
BUDGETS = ("steps", "minutes")
BASE = {"image": "pcd-conv-image", "vector": "pcd-vector", "text": "words"}  # recipes for a network E(x) that is given
TRANSFORM = {"text": "thalweg.data.transform:OneHot"}  # of a recipe that names none: Identity for other kinds
CONDITIONAL = {True: "conditional-labels", False: "conditional-continuous"}  # for an energy E(x, y) that is given
MINUTES = 10.0  # where neither the command, nor an override, nor the recipe has a budget
OF_DATA = ("path", "hub", "header", "drop", "size", "labels", "skip_bad")  # fields of a request, and of its data
ARGUMENTS = ("data.name", *(f"data.{name}" for name in OF_DATA), "seed")
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
        size: Of images: the side of the square to which they are resized and cropped.
        labels: Of images: "folder", or a CSV of names and classes.
        skip_bad: Whether images that cannot be read are left out.
        given: Parts that are objects, in place of the recipe's and the data's names.
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
    size: int | None = None
    labels: str | os.PathLike[str] | None = None
    skip_bad: bool = False
    given: Given = field(default_factory=Given)
    device: str = "auto"

    def __post_init__(self):
        for name in ("data", "recipe", "path", "labels"):
            object.__setattr__(self, name, _text(name, getattr(self, name)))
        if self.data is None:
            raise UserError("must be the name of a data set, or a path", argument="data")
        if self.seed is not None:
            object.__setattr__(self, "seed", check.whole("seed", self.seed, 0, 2**64 - 1))
        if self.size is not None:
            object.__setattr__(self, "size", check.whole("size", self.size, 1, LARGEST_SIZE))
        if isinstance(self.overrides, str) or not all(isinstance(text, str) for text in self.overrides):
            condition = "must be a list of texts, as in ['train.batch_size=32']"
            raise UserError(condition, argument="overrides", value=self.overrides)


def _text(name: str, value: Any) -> str | None:
    try:
        return None if value is None else os.fsdecode(value)
    except TypeError as error:
        raise UserError("must be a name or a path", argument=name, value=value) from error


def recipe_name(request: Request, kind: str) -> str:
    """`dual` means `dual-image` or `dual-vector` by the data's kind; a full name or a .yaml path stays.

    Where none is asked for, it is `dual`, and `words` for texts. UserError for such a name on texts, which have none.
    """
    name = os.fspath(request.recipe or ("words" if kind == "text" else "dual"))
    if name.endswith((".yaml", ".yml")):
        return name
    known = {p.stem for p in (Path(thalweg.__file__).parent / "recipes").glob("*.yaml")}
    if kind == "text" and name not in known and {f"{name}-image", f"{name}-vector"} & known:
        raise _of_another_kind(name, kind, of_texts=False)
    other = next((k for k in KINDS if f"{name}-{k}" in known), None)
    if other is not None and name not in known and f"{name}-{kind}" not in known:
        text = f"must be a recipe for {KINDS[kind]}, as the data are; {name} is for {KINDS[other]}"
        raise UserError(text, argument="recipe", hint="take dual, or leave it out")
    return f"{name}-{kind}" if f"{name}-{kind}" in known else name


def _of_another_kind(name: str, kind: str, *, of_texts: bool) -> UserError:
    text = f"must be a recipe for {KINDS[kind]}, as the data are; {name} is for {'texts' if of_texts else 'numbers'}"
    return UserError(text, argument="recipe", hint="take words" if kind == "text" else "take dual, or leave it out")


def origin(request: Request, kind: str) -> dict[str, Any]:
    """What a run's config.json keeps of the request, so that a resumed run can be held against it."""
    overrides = list(request.overrides)
    if request.given.energy is not None:
        return {"recipe": None, "recipe_sha256": None, "overrides": overrides, "given": request.given.names}
    name = recipe_name(request, kind)
    given = {"given": request.given.names} if request.given.names else {}
    return {"recipe": name, "recipe_sha256": _digest(read_recipe(name)), "overrides": overrides, **given}


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
    asked = {name: getattr(request, name) for name in OF_DATA}
    defaults = DataSettings.model_validate({"name": request.data}).model_dump()
    data = {**defaults, **asked, "drop": list(request.drop)}
    mine = [text for text in request.overrides if text.strip().startswith("data.")]
    return specs.override({"data": data}, mine)["data"]


def run_tree(
    request: Request, kind: str, defaults: Mapping[str, Any], num_classes: int | None = None
) -> dict[str, Any]:
    """The run that a request describes on data of a kind, not yet validated; `defaults` are those of `train`.

    `num_classes`: that of the data's labels, in place of a recipe's.
    """
    name, recipe = _recipe(request, kind)
    own = recipe.get("train", {})
    if not isinstance(own, dict) or {"data", "seed"} & recipe.keys():
        text = "must have a mapping under train, no data and no seed"
        raise UserError(text, argument=name, hint="give data and seed beside it")
    tree = {
        "transform": {"type": TRANSFORM.get(kind, "thalweg.data.transform:Identity")},
        **recipe,
        "data": data_tree(request),
        "seed": request.seed or 0,
        "train": {**defaults, **own},
    }
    watched = recipe.get("monitor", {})
    tree["monitor"] = (
        {**MonitorSettings.model_validate({}).model_dump(), **watched} if isinstance(watched, dict) else watched
    )
    if isinstance(own.get("guard", {}), dict):
        tree["train"]["guard"] = {**defaults["guard"], **own.get("guard", {})}
    if request.checkpoint_every is not None:
        tree["train"]["checkpoint_every"] = request.checkpoint_every
    energy = tree.get("energy")
    if num_classes is not None and isinstance(energy, dict) and "num_classes" in energy and not request.given.energy:
        tree["energy"] = {**energy, "num_classes": num_classes}
    tree = specs.override(tree, request.overrides)
    if tree["data"]["targets"] and isinstance(tree.get("energy"), dict) and request.given.energy is None:
        tree["energy"] = {"num_targets": len(tree["data"]["targets"]), **tree["energy"]}
    tree["train"] |= _budget(request, name, own, tree["train"])
    if isinstance(tree.get("energy"), dict) and "shape" in tree["energy"]:
        raise UserError("must not be given, as it comes from the data", argument="energy.shape", hint="drop it")
    return tree


def _recipe(request: Request, kind: str) -> tuple[str, dict[str, Any]]:
    """The recipe's name and sections; those of a part that is given are its own.

    For an energy that is given: the objective and the sampler of the recipe for its kind, and that recipe's training,
    unless an objective is given too. The network's own augmentation and budget are not that recipe's.
    """
    given = request.given
    if given.energy is None:
        name = recipe_name(request, kind)
        return name, {**_of_kind(name, kind), **given.specs()}
    if kind == "text" and isinstance(given.energy, NoiseConditional | Conditional):
        raise UserError("must be E(x) for texts", argument=f"energy {type(given.energy).__name__}")
    name = f"dual-{kind}" if isinstance(given.energy, NoiseConditional) else BASE[kind]
    if isinstance(given.energy, Conditional):
        name = CONDITIONAL[given.energy.outcomes.enumerable]
    recipe = _of_kind(name, kind)
    sections = {part: recipe[part] for part in ("transform", "objective", "sampler") if part in recipe}
    if isinstance(given.energy, NoiseConditional) and not isinstance(given.energy, Anchored):
        sections["objective"] = {"type": "thalweg.objective.score.score:MultiScaleDenoising"}
    train = recipe.get("train", {}) if given.objective is None else {}
    sections["train"] = {key: value for key, value in train.items() if key not in BUDGETS}
    return name, sections | given.specs()


def _of_kind(name: str, kind: str) -> dict[str, Any]:
    """The sections of a recipe; UserError where it is for texts and the data are none, or the other way round.

    A recipe for texts says `kind: text`. Of another one's shapes the energy itself tells.
    """
    recipe = read_recipe(name)
    of_texts = recipe.pop("kind", None) == "text"
    if of_texts != (kind == "text"):
        raise _of_another_kind(name, kind, of_texts=of_texts)
    return recipe


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
    _compare_given(request, config, folder)
    data = run["data"]
    if data["name"] != request.data:
        text = f"must hold a run on {request.data}, and holds one on {data['name']}"
        raise UserError(text, argument=str(folder), hint="name another folder with -o")

    def require(same: bool, argument: str, asked: object, began: object) -> None:
        if not same:
            without = began is None or began == [] or (began is False and argument != "header")
            text = "must be left out" if without else f"must be {began!r}"
            what = f", as the run in {folder} began without it" if without else f", as when the run in {folder} began"
            raise UserError(text + what, argument=argument, value=asked, hint=ANOTHER)

    places = {None if path is None else os.path.realpath(path) for path in (request.path, data["path"])}
    require(request.path is None or len(places) == 1, "path", request.path, data["path"])
    require(not request.hub or data["hub"], "hub", True, False)
    require(request.header in (None, data["header"]), "header", request.header, data["header"])
    require(not request.drop or [*request.drop] == data["drop"], "drop", [*request.drop], data["drop"])
    require(request.size in (None, data["size"]), "size", request.size, data["size"])
    require(request.labels in (None, data["labels"]), "labels", request.labels, data["labels"])
    require(not request.skip_bad or data["skip_bad"] or data["column"] is None, "skip_bad", True, False)
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


def _compare_given(request: Request, config: Mapping[str, Any], folder: Path) -> None:
    """The parts that are objects must be given again, and be of the classes and values of before."""
    began, now = config.get("given") or [], request.given.names
    if began != now:
        missing = ", ".join(name for name in began if name not in now) or "nothing"
        text = (
            f"must hold a run that was begun with {', '.join(now) or 'no objects'}; it was begun with {missing} given"
        )
        hint = f"call thalweg.train with {missing} and resume=True" if set(began) - set(now) else ANOTHER
        raise UserError(text, argument=str(folder), hint=hint)
    found = request.given.specs()
    for name in ("objective", "sampler"):  # the energy's follows once it is built
        _require_same(name, found, config, folder)


def require_same_energy(request: Request, config: Mapping[str, Any], folder: Path) -> None:
    """UserError for an energy of another class, or other noise levels, than the run in `folder` began with."""
    _require_same("energy", request.given.specs(), config, folder)


def _require_same(name: str, found: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
    if name in found and specs.plain(found[name]) != specs.plain(config["run"][name]):
        text = f"must be as when the run in {folder} began, {shown(config['run'][name])}"
        raise UserError(text, argument=name, value=found[name], hint=ANOTHER)


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
