"""What a run is made of, checked before any work starts: every section of `config.json` and every training knob."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from thalweg.core.config import check
from thalweg.core.errors import UserError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class DataSettings(_Section):
    """Which data: a named set or a path, an optional file or folder that holds the set, and the held-out share."""

    name: str
    path: str | None = None
    hub: bool = False
    held_out: float | None = Field(None, gt=0, lt=1)
    limit: int | None = Field(None, ge=2)


class TrainSettings(_Section):
    """How the parameters move. Exactly one budget, `steps` or `minutes`, is set when a run starts."""

    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(1e-4, ge=0)
    warmup: int = Field(200, ge=0, description="steps of linear warm-up")
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights a step")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_every: int | None = Field(None, ge=1, description="steps; every minute or so if not given")
    keep: int = Field(2, ge=1, description="checkpoints kept")
    log_every: int = Field(10, ge=1)


class RunSettings(_Section):
    """A whole run: data, transform, energy, objective and sampler (specs), training, seed."""

    data: DataSettings
    transform: dict[str, Any] = {"type": "thalweg.data.transform:Identity"}
    energy: dict[str, Any]
    objective: dict[str, Any]
    sampler: dict[str, Any]
    train: TrainSettings = Field(default_factory=lambda: TrainSettings.model_validate({}))
    seed: int = 0


def validate(config: dict[str, Any]) -> RunSettings:
    """The run that a mapping describes; UserError with the dotted key, the value and the remedy."""
    try:
        run = RunSettings.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"{key}: no such key; `thalweg train --help` and the recipes show those there are"
            ) from error
        raise UserError(f"{key}={first.get('input')!r}: {first['msg'].lower()}") from error
    for name in ("transform", "energy", "objective", "sampler"):
        check(getattr(run, name), name)
    return run
