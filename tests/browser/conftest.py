"""A headless Chromium for the tests of this folder, and a service for it to open.

Under CI=true a browser or a driver that is missing fails; elsewhere it skips.
"""

import os
import re
import shutil
import socket
import threading
import time

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-quic"]
NAMES = ("chromium", "chromium-browser", "google-chrome")
FAILURES = re.compile(r"Failed to load resource|Content Security Policy")  # what Chromium itself says of them


def _missing(what):
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} must be installed where CI=true; .ci/run installs it")
    pytest.skip(f"{what} is not installed")


@pytest.fixture(scope="module")  # not longer: while it lives, its thread has an event loop that others would find
def chromium():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("the package playwright")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        _missing("chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=FLAGS, timeout=120_000)
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium):
    """Opens pages; after the test none may have had an error or asked anything of another origin.

    `failures=True` where requests of the page are to fail.
    """
    contexts, troubles, asked = [], [], []

    def opened(address=None, *, failures=False, **options):
        context = chromium.new_context(**({"viewport": {"width": 1180, "height": 900}} | options))
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()

        def heard(message):
            if message.type == "error" and not (failures and FAILURES.search(message.text)):
                troubles.append(message.text)

        page.on("console", heard)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        if address is not None:
            page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []
    assert [url for url in asked if not url.startswith(("blob:", "data:", "file:", "http://127.0.0.1:"))] == []


class Service:
    """`thalweg serve` in a thread: it may go away and come back at the same port."""

    def __init__(self, models, settings):
        self.models, self.settings = models, settings
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        self.server = self.thread = None

    def start(self):
        import uvicorn

        from thalweg.serve.app import create_app

        app = create_app(self.models, self.settings)
        how = {"log_level": "error", "ws": "none", "timeout_graceful_shutdown": 2}
        self.server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=self.port, **how))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        return self

    def stop(self):
        if self.thread is not None:
            self.server.should_exit = True
            self.thread.join()
            self.thread = None


@pytest.fixture
def serve():
    """Starts services of models by name."""
    from thalweg.serve.settings import ServeSettings

    started = []

    def start(models, **settings):
        started.append(Service(models, ServeSettings(**settings)).start())
        return started[-1]

    yield start
    for service in started:
        service.stop()
