"""The short way of scores: a POST to /v1/score without a query, which is what loads a service.

Finding a route and its parameters costs the web framework more than reading a small body and scoring it. What these
requests need has no parameters, so the route's own method is called at once. All others take the ordinary way, and both
give the same answers.
"""

from typing import NamedTuple

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from thalweg.serve.answers import asking
from thalweg.serve.models import ServedModel
from thalweg.serve.v1.routes import Plain

PATH = "/v1/score"


class Template(NamedTuple):
    """A route as far as counts and logs ask."""

    path: str


ROUTE = Template(PATH)


class Direct:
    """Pure ASGI. A request that would be refused is refused before its body is understood."""

    def __init__(self, app: ASGIApp, plain: Plain):
        self.app, self.plain = app, plain
        models = list(plain.context.models.values())
        self.only: ServedModel | None = models[0] if len(models) == 1 else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        only = self.only
        if only is None or scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if scope["query_string"]:
            await self.app(scope, receive, send)
            return
        scope["route"] = ROUTE
        request = Request(scope, receive, send)
        await request.body()  # all of it: a client that is answered while it sends loses the answer
        with asking(only):
            self.plain.engine.admit(only.name)
        answer = await self.plain.score(request)
        await answer(scope, receive, send)
