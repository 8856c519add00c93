"""Stand-in until the branch `engine` is merged."""

from collections.abc import Callable, Mapping

import uvicorn

from thalweg.bundle.servable import Servable
from thalweg.serve.app import create_app
from thalweg.serve.settings import ServeSettings


def run(
    models: Mapping[str, Servable],
    versions: Mapping[str, str],
    settings: ServeSettings,
    *,
    say: Callable[[str], None],
    open_page: bool = False,
) -> None:
    """Serve until stopped."""
    app = create_app(models, settings, versions=versions)
    say(f"http://{settings.host}:{settings.port}")
    uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning", server_header=False)
