"""The page's files as routes: the page at `/`, its modules, style and icon at `/page/NAME`, and no other file."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# No inline script or style, nothing from elsewhere, in no frame, and no form that is sent by the browser itself.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",  # kept by the browser, and asked for again by its hash
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class PageFile(NamedTuple):
    """A file of the page as it is sent."""

    content: bytes
    media_type: str
    etag: str

    def answer(self, request: Request) -> Response:
        """The file, or 304 for a browser that has it."""
        headers = {**HEADERS, "ETag": self.etag}
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if self.etag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers={**headers, "Content-Type": self.media_type})


def page_files() -> dict[str, PageFile]:
    """All files of the page by name, read once: a request names a key of this table and never a path."""
    found = {}
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.name] = PageFile(content, TYPES[path.suffix], etag)
    return found


def page_router() -> APIRouter:
    """Routes of the page. They hold no data, so they ask for no token; they are no part of the API's description."""
    router, files = APIRouter(include_in_schema=False), page_files()

    @router.api_route("/", methods=["GET", "HEAD"])
    def page(request: Request) -> Response:
        return files["index.html"].answer(request)

    def add(name: str) -> None:
        def part(request: Request) -> Response:
            return files[name].answer(request)

        router.add_api_route(f"/page/{name}", part, methods=["GET", "HEAD"], name=name)

    for name in files:
        if name != "index.html":
            add(name)
    return router
