"""The plain routes, for people and their scripts."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from thalweg.bundle.servable import Classifies
from thalweg.serve.answers import RouteContext, answer, asking, lines, require_finite
from thalweg.serve.engine.gone import gone_of
from thalweg.serve.engine.job import Gone
from thalweg.serve.errors import HttpError, malformed
from thalweg.serve.inputs import body
from thalweg.serve.inputs.conform import RowName
from thalweg.serve.inputs.instances import image, pixels
from thalweg.serve.inputs.new_categories import warnings_of
from thalweg.serve.models import ServedModel
from thalweg.serve.v1 import wire
from thalweg.serve.v1.requests import (
    InpaintRequest,
    NoOptions,
    RerankOptions,
    SampleRequest,
    ScoreOptions,
    read_as,
    require_query,
)

Name = Annotated[str | None, Query(description="Which model, where several are served.", max_length=200)]
Fit = Annotated[bool, Query(description="Resize a picture of another size, by the mean of each pixel's area.")]
Encoding = Annotated[
    Literal["lists", "base64"], Query(description="Arrays as nested lists, or as {shape, data} of uint8.")
]
AlphaQuery = Annotated[
    float | None, Query(gt=0, le=1, allow_inf_nan=False, description="Flag p-values up to this share.")
]


PIECES = 30  # of draws that are asked for whole
TOGETHER = 64  # rows of numbers that are explained in one piece; an image or a text is a piece of its own


def plain_routes(context: RouteContext) -> APIRouter:
    """/v1/models, score, explain, sample, inpaint, rerank, classify."""
    router = APIRouter(prefix="/v1", tags=["plain"])
    routes = Plain(context)
    router.get("/models")(routes.models)
    for route in (routes.score, routes.explain, routes.sample, routes.inpaint, routes.rerank, routes.classify):
        router.post(f"/{route.__name__}")(route)
    return router


class Plain:
    """One method a route."""

    def __init__(self, context: RouteContext):
        self.context, self.engine, self.settings = context, context.engine, context.settings
        self._described = {"models": [model.describe() for model in context.models.values()]}

    async def models(self) -> Response:
        """The models that are served, and what each can do."""
        return answer(self._described)

    async def score(self, request: Request, model: Name = None, alpha: AlphaQuery = None, fit: Fit = False) -> Response:
        """Energy of each row and, where the model has them, log p, p-value and flag."""
        require_query(request, "model", "alpha", "fit")
        served = self.context.models.find(model)
        found = await body.read(request, served, self.settings, ("alpha",), fit=fit)
        return Response(await self.scored(served, found, alpha=alpha, **self._how(request)), media_type=body.JSON)

    async def scored(
        self, served: ServedModel, read: body.Rows, deadline: float, gone: Gone, *, alpha: float | None = None
    ) -> bytes:
        """The JSON that `score` answers for a body that was read."""
        asked = read_as(ScoreOptions, read.options).alpha if read.options else None
        with asking(served, read.row_name):
            found = await self.engine.score(
                served.name, read.rows, alpha=alpha if asked is None else asked, deadline=deadline, gone=gone
            )
        require_finite(found, read.row_name)
        return to_json(_head(served, read.rows) | {"predictions": wire.predictions(found)})

    async def explain(
        self,
        request: Request,
        model: Name = None,
        top: Annotated[int, Query(ge=1, le=1000, description="Reasons a row.")] = 3,
        encoding: Encoding = "lists",
        fit: Fit = False,
    ) -> Response:
        """Why each row has its energy, beside its scores."""
        require_query(request, "model", "top", "encoding", "fit")
        served = self._able(model, "explain")
        rows, options, row_name = await body.read(request, served, self.settings, (), fit=fit)
        read_as(NoOptions, options)
        with asking(served, row_name):
            found = await self.engine.score(served.name, rows, alpha=None, **self._how(request))
        require_finite(found, row_name)
        at_once = TOGETHER if served.servable.content in ("rows", "table") else 1

        def make() -> Iterator[list[dict[str, Any]]]:
            told = []
            for i in range(0, len(found["energy"]), at_once):
                some = {name: value[i : i + at_once] for name, value in rows.items()}
                told += self.engine.scoring.call_method(served.name, "explain", some, top=top)
                yield told

        reasons = await self._last(request, served, make)
        both = zip(wire.predictions(found), reasons, strict=True)
        told = [wire.explained(why, encoding == "base64") | scores for scores, why in both]
        return answer(_head(served, rows) | {"predictions": told})

    async def sample(self, request: Request, model: Name = None, encoding: Encoding = "lists") -> Response:
        """Draws, or with `frames` lines of the draws on their way."""
        require_query(request, "model", "encoding")
        served = self._able(model, "sample")
        asked = read_as(SampleRequest, (await body.json_body(request, self.settings)).value)
        label = served.number_of_class(asked.label)
        how: dict[str, Any] = {"seed": asked.seed, "temperature": asked.temperature, "label": label}
        drawing = partial(self.engine.scoring.iterate, served.name, "sample_frames", asked.n, **how)
        if not asked.frames:  # in pieces all the same, so that scores go on beside it
            drawn, _ = await self._last(request, served, partial(drawing, frames=PIECES))
            _require_numbers(drawn)
            return answer(_head(served) | {"predictions": wire.rows(served, drawn, encoding == "base64")})

        def make() -> Iterator[dict[str, Any]]:
            before = None
            for i, frame in enumerate(drawing(frames=asked.frames)):
                if before is not None:
                    yield _frame(served, *before, last=False)
                before = (i, *frame)
            if before is not None:
                yield _frame(served, *before, last=True)

        return await self._stream(request, served, make)

    async def inpaint(self, request: Request, model: Name = None) -> Response:
        """Completions of an image's missing part, a line each as they come."""
        require_query(request, "model")
        served = self._able(model, "inpaint")
        scoring = self.engine.scoring
        value, literals = await body.json_body(request, self.settings)
        asked, spec = read_as(InpaintRequest, value), served.inputs[0]
        observed = _mask(asked.observed, served, literals)
        x = image(asked.image, spec, "image", literals)
        if not (x.min() >= 0 and x.max() <= 1):
            raise malformed("must be pixels in [0, 1]", "image")

        def make() -> Iterator[dict[str, Any]]:
            drawn = scoring.iterate(served.name, "inpaint", x[None], observed[None], n=asked.n, seed=asked.seed)
            for i, found in enumerate(drawn):
                energy = scoring.score(served.name, {"x": np.asarray(found, x.dtype)}, None, 1)["energy"]
                _require_numbers(energy)
                yield {"completion": i, "image": wire.pixels(found[0]), "energy": float(energy[0])}
            yield {"done": True}

        return await self._stream(request, served, make)

    async def rerank(self, request: Request, model: Name = None, fit: Fit = False) -> Response:
        """The order of candidates, best first."""
        require_query(request, "model", "fit")
        served = self._able(model, "rerank")
        rows, options, row_name = await body.read(request, served, self.settings, ("keep",), fit=fit)
        keep = read_as(RerankOptions, options).keep
        found = await self._call(request, served, row_name, "rerank", rows, keep=keep)
        require_finite({"energy": found["energy"]}, row_name)
        predictions = [{"energy": energy} for energy in found["energy"].tolist()]
        return answer(_head(served, rows) | {"order": found["order"].tolist(), "predictions": predictions})

    async def classify(self, request: Request, model: Name = None, fit: Fit = False) -> Response:
        """The likeliest label of each row, and the probability of each label."""
        require_query(request, "model", "fit")
        served = self._able(model, "classify")
        servable = served.servable
        assert isinstance(servable, Classifies)
        rows, options, row_name = await body.read(request, served, self.settings, (), fit=fit)
        read_as(NoOptions, options)
        found = await self._call(request, served, row_name, "classify", rows)
        require_finite({"probabilities": found}, row_name)
        labels = list(servable.labels)
        told = [
            {"label": labels[best], "probabilities": dict(zip(labels, row, strict=True))}
            for best, row in zip(found.argmax(1), found.tolist(), strict=True)
        ]
        return answer(_head(served, rows) | {"predictions": told})

    def _able(self, name: str | None, what: str) -> ServedModel:
        served = self.context.models.find(name)
        if what not in served.can:
            raise served.lacks(what)
        return served

    async def _call(
        self,
        request: Request,
        served: ServedModel,
        row_name: RowName,
        method: str,
        rows: dict[str, np.ndarray],
        **options: Any,
    ) -> Any:
        """What a method of the model returns of these rows, computed where its scores are."""
        work = partial(self.engine.scoring.call_method, served.name, method, rows, **options)
        with asking(served, row_name):
            return await self.engine.call(served.name, work, **self._how(request))

    async def _last(self, request: Request, served: ServedModel, make: Any) -> Any:
        with asking(served):
            return await self.engine.last(served.name, make, **self._how(request))

    async def _stream(self, request: Request, served: ServedModel, make: Any) -> Response:
        with asking(served):
            items = self.engine.stream(served.name, make, **self._how(request))
        return await lines(served, items)

    def _how(self, request: Request) -> dict[str, Any]:
        return {"deadline": self.context.deadline(request), "gone": gone_of(request.receive)}


def _head(served: ServedModel, rows: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
    """What an answer begins with; `rows`: those that it is about."""
    warnings = [] if rows is None else warnings_of(served, rows)
    return {"model": served.name, "version": served.version} | ({"warnings": warnings} if warnings else {})


def _frame(served: ServedModel, i: int, drawn: np.ndarray, energies: np.ndarray, *, last: bool) -> dict[str, Any]:
    _require_numbers(energies)
    _require_numbers(drawn)
    return {"frame": i, "last": last, "energies": np.asarray(energies).tolist(), "rows": wire.rows(served, drawn, True)}


def _require_numbers(value: np.ndarray) -> None:
    numbers = value if value.dtype.kind == "f" else [one for one in value.flat if isinstance(one, float)]
    if not np.isfinite(numbers).all():
        raise HttpError(422, "non_finite", "the chains have left the finite numbers; lower the temperature")


def _mask(value: Any, served: ServedModel, literals: bool) -> np.ndarray:
    """(C, H, W) bool of 0 and 1, in lists or in bytes."""
    spec = served.inputs[0]
    if isinstance(value, dict):
        return pixels(value, spec, "observed") > 0
    found = image(value, spec, "observed", literals)
    if not np.isin(found, (0, 1)).all():
        raise malformed("must be 0 where a pixel is missing and 1 where it is observed", "observed")
    return found > 0
