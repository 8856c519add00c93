"""The settings of a run: every section of `config.json`, checked before any work starts."""

from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from thalweg.core.config import check
from thalweg.core.errors import UserError, suggestion
from thalweg.data.options import LARGEST_SIZE
from thalweg.data.validate import Kind
from thalweg.training.guard import GuardSettings
from thalweg.training.signals import MonitorSettings

Share = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class DataSettings(_Section):
    """The data of a run."""

    name: str  # of a set, or a path
    path: str | None = None  # of the file or folder with a named set
    hub: bool = False  # whether to fetch a named set from the Hub
    held_out: float | None = Field(None, gt=0, lt=1, description="share of rows held out")
    limit: int | None = Field(None, ge=2, description="most rows to train on")
    header: bool | None = None  # whether the first line of a CSV names its columns
    drop: list[str] = []  # columns of a table to leave out
    targets: list[str] = []  # columns of a table that are y of p(y | x): they become the last of a row
    length: int | None = Field(None, ge=1, description="most letters of a text")
    size: int | None = Field(None, ge=1, le=LARGEST_SIZE, description="side of the square that images are resized to")
    labels: str | None = Field(None, min_length=1)  # "folder", a CSV of names and classes, or a column
    skip_bad: bool = False  # whether images that cannot be read are left out
    column: str | None = Field(None, min_length=1)  # of images as bytes, in a table or on the Hub
    split: str | None = Field(None, min_length=1)  # of a set on the Hub
    config: str | None = Field(None, min_length=1)  # of a set on the Hub
    workers: int = Field(2, ge=0, le=64, description="threads that read rows that stay on disk")


class TrainSettings(_Section):
    """The optimisation. Exactly one budget, `steps` or `minutes`, is set when a run starts."""

    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0, le=1e6)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[Share, Share] = (0.9, 0.99)
    weight_decay: float = Field(1e-4, ge=0)
    warmup: int = Field(200, ge=0, description="steps of linear warm-up")
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights a step")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    tf32: bool | None = None  # whether float32 on a GPU may round to TF32; null: as torch is set
    compile: bool = False  # whether the loss is compiled by torch.compile
    checkpoint_every: int | None = Field(None, ge=1, description="steps; every minute or so if not given")
    keep: int = Field(2, ge=1, description="checkpoints kept")
    log_every: int = Field(10, ge=1)
    guard: GuardSettings = Field(default_factory=lambda: GuardSettings.model_validate({}))


class RunSettings(_Section):
    """A whole run: data, augmentation, transform, energy, objective and sampler (specs), training, monitor, seed."""

    data: DataSettings
    augment: dict[str, Any] | None = None
    transform: dict[str, Any] = {"type": "thalweg.data.transform:Identity"}
    energy: dict[str, Any]
    objective: dict[str, Any]
    sampler: dict[str, Any]
    train: TrainSettings = Field(default_factory=lambda: TrainSettings.model_validate({}))
    monitor: MonitorSettings = Field(default_factory=lambda: MonitorSettings.model_validate({}))
    seed: int = Field(0, ge=0, lt=2**64)


class DataFacts(BaseModel):
    """The data of a run as config.json describes them."""

    model_config = ConfigDict(frozen=True)

    source: StrictStr
    fingerprint: StrictStr
    labels: StrictStr | None = None  # a fingerprint, where the objective reads labels
    kind: Kind
    shape: list[Annotated[StrictInt, Field(ge=1)]] = Field(min_length=1, max_length=3)
    dtype: Literal["uint8", "float32", "float64"]
    columns: list[StrictStr] | None  # names, of a table that has them
    ignored: list[StrictStr]  # columns that were left out
    encoding: list[Any] | None  # what the columns hold, as `data.columns.encoding.Columns.to_list` says it
    alphabet: dict[str, Any] | None = None  # of texts, as `data.alphabet.Alphabet.to_dict` says it
    classes: list[StrictStr] | None = None  # names of the labels 0, 1, …, where the data name them
    num_train: StrictInt
    num_held_out: StrictInt


class Stored(BaseModel):
    """The parts of config.json that resuming a run needs."""

    model_config = ConfigDict(frozen=True)

    thalweg: StrictStr
    torch: StrictStr
    command: StrictStr | None
    normalised: StrictBool
    recipe: StrictStr | None = None
    recipe_sha256: StrictStr | None = None
    overrides: list[StrictStr] | None = None
    given: list[StrictStr] | None = None
    data: DataFacts
    run: dict[str, Any]


M = TypeVar("M", bound=BaseModel)


def validate(config: dict[str, Any], where: str = "", *, given: Collection[str] = ()) -> RunSettings:
    """The run that a mapping describes; UserError with the dotted key, `where` before it, the value and the remedy.

    `given`: the parts that are objects, whose specs are names only.
    """
    run = checked(RunSettings, config, where)
    for name in ("augment", "transform", "energy", "objective", "sampler"):
        spec, path = getattr(run, name), f"{where}.{name}" if where else name
        if name in given or (name == "augment" and spec is None):
            continue
        if "type" not in spec:
            hint = "write `type: thalweg.package.module:ClassName` under it"
            raise UserError("must have a type", argument=path, hint=hint)
        check(spec, path)
    return run


def stored(config: dict[str, Any]) -> RunSettings:
    """The run in a config.json, all of whose sections must be there; UserError with the dotted key."""
    remedy = "the run wrote it"
    checked(Stored, config, missing=remedy)
    lost = RunSettings.model_fields.keys() - config["run"].keys() - {"augment", "monitor"}
    if lost:
        raise UserError("missing", argument=f"run.{min(lost)}", hint=remedy)
    return validate(config["run"], "run", given=config.get("given") or ())


def checked(
    model: type[M], tree: Any, where: str = "", *, missing: str = "the recipe or an override must give it"
) -> M:
    """The section that a mapping describes. UserError: `argument` is the dotted key, `where` before it; `missing` is
    the hint where a key is missing.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        faults = error.errors()
        misspelt = (fault for fault in faults if fault["type"] == "extra_forbidden")  # explains other faults
        first = next(misspelt, faults[0])
        key = ".".join(map(str, ([where] if where else []) + list(first["loc"])))
        if first["type"] == "extra_forbidden":
            raise UserError("no such key", argument=key, hint=_hint(model, first["loc"])) from error
        if first["type"] == "missing":
            raise UserError("missing", argument=key, hint=missing) from error
        value, condition = first.get("input"), first["msg"].lower().replace("input should be", "must be", 1)
        condition += ", not null" if value is None else ""
        raise UserError(condition, argument=key or "the run", value=value) from error


def _hint(model: type[BaseModel], loc: tuple[Any, ...]) -> str:
    """The known key that is closest, or all of them."""
    for part in loc[:-1]:
        inner = model.model_fields[part].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        model = inner
    return suggestion(str(loc[-1]), model.model_fields)
