"""The service as an ASGI application."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from thalweg import __version__
from thalweg.bundle.servable import GetsReady, Servable
from thalweg.serve.answers import RouteContext, answer, of_rejected
from thalweg.serve.engine.engine import Engine
from thalweg.serve.engine.rejected import Rejected
from thalweg.serve.errors import HttpError, of_status
from thalweg.serve.metrics import Metrics
from thalweg.serve.models import Models
from thalweg.serve.operations import operations
from thalweg.serve.page.routes import page_router
from thalweg.serve.safety.bodies import BodyLimitMiddleware
from thalweg.serve.safety.headers import Headers
from thalweg.serve.safety.observed import MetricsMiddleware
from thalweg.serve.safety.origin import Origin, hosts_of
from thalweg.serve.safety.tokens import Tokens, require_token
from thalweg.serve.schema.openapi import cached
from thalweg.serve.settings import ServeSettings
from thalweg.serve.v1.direct import ScoreFastPath
from thalweg.serve.v1.requests import of_validation
from thalweg.serve.v1.routes import Plain, plain_routes
from thalweg.serve.v2.routes import protocol_routes


class ServiceApp(FastAPI):
    """FastAPI behind the short way of scores, which comes before what the framework does for each request."""

    fast: ScoreFastPath

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.fast(scope, receive, send)

    async def ordinary(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The framework's way."""
        await super().__call__(scope, receive, send)


def create_app(
    models: Mapping[str, Servable],
    settings: ServeSettings = ServeSettings(),  # noqa: B008 — frozen
    *,
    versions: Mapping[str, str] = {},
) -> ServiceApp:
    """The service of these models, by the names that clients call them by.

    `app.state.engine` does the work; it starts with the application. UserError for settings that would serve everyone.
    """
    require_token(settings)
    for servable in models.values():
        if isinstance(servable, GetsReady):
            servable.get_ready()
    metrics = Metrics(versions)
    engine = Engine(
        models,
        queue=settings.queue,
        deadline=settings.deadline,
        metrics=metrics,
        threads=settings.threads,
        processes=settings.processes,
    )
    context = RouteContext(Models.of(models, versions), engine, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if app.state.server is None:
            await engine.start()
        else:  # it listens already, and says meanwhile that it is not ready
            app.state.server.starting(engine.start())
        yield
        await engine.drain(settings.drain)

    app = ServiceApp(
        title="Thalweg",
        version=__version__,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        middleware=[
            Middleware(MetricsMiddleware, metrics=metrics),
            Middleware(Headers),
            Middleware(BodyLimitMiddleware, max_body=settings.max_body, seconds=settings.deadline),
            Middleware(Tokens, hashes=settings.tokens),
            Middleware(Origin, hosts=hosts_of(settings)),
        ],
        redirect_slashes=False,
    )
    app.fast = ScoreFastPath(
        app.ordinary,
        Plain(context),
        metrics,
        Origin(app, hosts_of(settings)),
        Tokens(app, settings.tokens),
        settings.max_body,
        requests=lambda: app.state.requests,
    )
    app.state.engine, app.state.metrics, app.state.settings = engine, metrics, settings
    app.state.server = app.state.requests = None  # a process that serves it has these
    app.include_router(operations(engine, metrics))
    app.include_router(plain_routes(context))
    app.include_router(protocol_routes(context))
    if settings.page:
        app.include_router(page_router())
    app.add_exception_handler(HttpError, _http_error)
    app.add_exception_handler(Rejected, _rejected)
    app.add_exception_handler(HTTPException, _of_framework)
    app.add_exception_handler(RequestValidationError, _validation)
    app.openapi = cached(app, context.models, settings)
    return app


def _told(request: Request, error: HttpError) -> Response:
    """The error in the form of the protocol that the path is of."""
    return answer(error.body_for(request.url.path), error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return _told(request, error)


async def _rejected(request: Request, error: Exception) -> Response:
    assert isinstance(error, Rejected)
    return _told(request, of_rejected(error))


async def _of_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _told(request, of_status(error.status_code, error.headers))


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _told(request, of_validation(error.errors()))
