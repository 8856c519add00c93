"""What the plain routes are asked for, beside rows."""

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError, PydanticKnownError
from starlette.requests import Request

from thalweg.serve.errors import HttpError, malformed

SEEDS = 2**63 - 1
LONGEST_NAME = 1000  # characters of a class's name


def whole(value: Any) -> Any:
    """2.0 as 2, which JSON Schema takes for an integer; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def class_or_none(value: Any) -> Any:
    """The number of a class, or its name, as it is; an error of pydantic for anything else but None."""
    value = whole(value)
    if type(value) is int and value < 0:
        raise PydanticKnownError("greater_than_equal", {"ge": 0})
    if type(value) is int and value > SEEDS:
        raise PydanticKnownError("less_than_equal", {"le": SEEDS})
    if isinstance(value, str) and len(value) > LONGEST_NAME:
        raise PydanticKnownError("string_too_long", {"max_length": LONGEST_NAME})
    if type(value) not in (int, str, type(None)):
        raise PydanticCustomError("class", "neither a number nor a name")
    return value


Whole = BeforeValidator(whole)
Alpha = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
B = TypeVar("B", bound=BaseModel)


class Strict(BaseModel):
    """An object with these keys and no other, and no value converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ScoreOptions(Strict):
    """Beside `instances`."""

    alpha: Alpha | None = None


class RerankOptions(Strict):
    """Beside `instances`."""

    keep: Annotated[int, Field(ge=1, le=SEEDS), Whole] | None = None


class NoOptions(Strict):
    """Nothing beside `instances`."""


class SampleRequest(Strict):
    """Draws of a model. `frames` > 0: about so many pictures of the draws on their way, a line each."""

    n: Annotated[int, Field(ge=1, le=100), Whole] = 1
    seed: Annotated[int, Field(ge=0, le=SEEDS), Whole] = 0
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    label: Annotated[Any, AfterValidator(class_or_none)] = None
    frames: Annotated[int, Field(ge=0, le=100), Whole] = 0


class InpaintRequest(Strict):
    """An image, and where it is observed (1) or missing (0)."""

    image: Any
    observed: Any
    n: Annotated[int, Field(ge=1, le=64), Whole] = 1
    seed: Annotated[int, Field(ge=0, le=SEEDS), Whole] = 0


def read_as(cls: type[B], value: dict[str, Any]) -> B:
    """The value as such an object; 400 that names the first key that is wrong."""
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        raise of_validation(error.errors(include_url=False, include_input=False)) from error


def require_query(request: Request, *known: str) -> None:
    """400 for a query parameter that the route does not have, or that comes twice."""
    names = [name for name, _ in request.query_params.multi_items()]
    extra = next((name for name in names if name not in known), None)
    if extra is not None:
        raise malformed(f"must be one of {', '.join(known)}", extra[:80])
    if len(set(names)) < len(names):
        raise malformed("must be given once", next(name for name in names if names.count(name) > 1))


# What must hold, by the type of pydantic's error and with what it says of the bound.
CONDITIONS = {
    "missing": "must be there",
    "extra_forbidden": "must be left out, as this route does not know it",
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
    "string_too_long": "must have {max_length} characters or fewer",
    "literal_error": "must be {expected}",
    "class": "must be the number of a class, or its name",
}
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "model": "an object",
}


def of_validation(errors: Any) -> HttpError:
    """400 for the first of pydantic's errors, in our words."""
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"] if part not in ("query", "path", "body", "header"))
    kind, bounds = str(first["type"]), {name: whole(value) for name, value in first.get("ctx", {}).items()}
    default = f"must be {KINDS.get(kind.partition('_')[0], 'of the form that this route describes')}"
    return malformed(CONDITIONS.get(kind, default).format_map(bounds)[:200], field[:80] or None)
