"""R23 in a real browser: pages of other sites that reach for a service on loopback. None may score, or read an answer.

The names of the attackers are led to 127.0.0.1 by the browser itself. Each attack has a control: the same request from
where it is allowed is seen, or a service that is set up to take everybody falls to it.
"""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from .conftest import FLAGS, NAMES, Service
from .models import ATTACK, Images, Table

RULES = "MAP evil.example 127.0.0.1, MAP *.evil.example 127.0.0.1"
BODY = '{"instances": [[[[0]]]]}'


class Seen(Table):
    """A table that says how often it was asked."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def score(self, rows, *, alpha=None):
        self.calls += 1
        return super().score(rows, alpha=alpha)


ROW = {"instances": [{"temperature": 20, ATTACK: 1000, "state": "on"}]}


class Site:
    """An attacker's site at a port of 127.0.0.1: one page, whatever is asked."""

    def __init__(self, port=0, html="<!doctype html><title>evil</title><body></body>"):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(html.encode())

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            allow_reuse_address, daemon_threads, block_on_close = True, True, False

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def site():
    opened = []

    def start(*given, **more):
        opened.append(Site(*given, **more))
        return opened[-1]

    yield start
    for one in opened:
        one.stop()


@pytest.fixture(scope="module")
def rebound(chromium):
    """A browser that finds evil.example at 127.0.0.1."""
    path = next(found for name in NAMES if (found := shutil.which(name)))
    rules = f"--host-resolver-rules={RULES}"
    browser = chromium.browser_type.launch(executable_path=path, args=[*FLAGS, rules], timeout=120_000)
    yield browser
    browser.close()


@pytest.fixture
def visit(rebound):
    """Opens an address in a fresh context."""
    contexts = []

    def go(address):
        contexts.append(rebound.new_context())
        contexts[-1].set_default_timeout(30_000)
        page = contexts[-1].new_page()
        page.goto(address)
        return page

    yield go
    for context in contexts:
        context.close()


@pytest.fixture
def victim(serve):
    model = Seen()
    service = serve({"pumps": model})
    model.calls = 0  # those that measure its cost
    return service, model


FETCH = """async ([url, how]) => {
  try {
    const answer = await fetch(url, how);
    return [answer.status, answer.type, await answer.text()];
  } catch (error) { return [0, "blocked", String(error)]; }
}"""


def json_post(value):
    return {"method": "POST", "headers": {"content-type": "application/json"}, "body": json.dumps(value)}


@pytest.mark.parametrize("hosts", [(), ("*",)], ids=["as it is", "control: any host"])
def test_dns_rebinding(site, visit, hosts):
    """A page of evil.example:PORT is loaded; then the name leads to the service, at the same port and origin."""
    from thalweg.serve.settings import ServeSettings

    model = Seen()
    service = Service({"pumps": model}, ServeSettings(allowed_hosts=hosts))
    evil = Site(service.port)
    try:
        page = visit(f"http://evil.example:{service.port}/")
        assert page.title() == "evil"
    finally:
        evil.stop()
    service.start()
    try:
        model.calls = 0
        found = [page.evaluate(FETCH, [path, {}]) for path in ("/v1/models", "/metrics", "/openapi.json", "/v2", "/")]
        found.append(page.evaluate(FETCH, ["/v1/score", json_post(ROW)]))
        page.goto(f"http://evil.example:{service.port}/")
        shown = page.content()
    finally:
        service.stop()
    if hosts:
        assert [status for status, _, _ in found] == [200] * 6
        assert model.calls == 1
        return
    assert [status for status, _, _ in found] == [403] * 6
    assert all("must name a host that this service answers to" in text for *_, text in [*found, (0, "", shown)])
    assert model.calls == 0


def test_pages_elsewhere_neither_ask_nor_read(site, visit, victim):
    """CSRF: what a page may send without leave, and what it may not; of another name, port, and of none."""
    service, model = victim
    port = site().port
    plain = {"method": "POST", "mode": "no-cors", "body": BODY}
    ways = [
        {"mode": "no-cors"},
        {},
        {"credentials": "include"},
        plain,
        {**plain, "headers": {"content-type": "text/plain"}},
        {**plain, "headers": {"content-type": "application/x-www-form-urlencoded"}},
        {**json_post(ROW), "mode": "no-cors"},  # the browser makes it text/plain
        json_post(ROW),
        {**json_post(ROW), "credentials": "include"},
        {"method": "PUT", "body": BODY},
        {"method": "DELETE"},
    ]
    for origin in (f"http://evil.example:{port}", f"http://localhost:{port}", f"http://127.0.0.1:{port}"):
        page = visit(origin + "/")
        target = f"http://127.0.0.1:{service.port}"
        tried = [(f"{target}{path}", way) for path in ("/v1/score", "/v1/models") for way in ways]
        for host in ("localhost", "a.evil.example", "0.0.0.0"):
            tried += [(f"http://{host}:{service.port}/v1/score", way) for way in (ways[0], json_post(ROW))]
        for url, way in tried:
            status, kind, text = page.evaluate(FETCH, [url, way])
            assert (status, kind in ("opaque", "blocked")) == (0, True), (origin, url, way)
            assert "pumps" not in text
        page.evaluate("url => navigator.sendBeacon(url, new Blob(['{}'], {type: 'text/plain'}))", f"{target}/v1/score")
    assert model.calls == 0
    own = visit(service.address)  # the control
    assert own.evaluate(FETCH, ["/v1/score", json_post(ROW)])[0] == 200
    assert model.calls == 1


FORM = """<!doctype html><title>evil</title><form id=f method=post enctype="{enctype}" action="{action}">
<input name='{{"instances": [{{"temperature": 20, "x": "' value='"}}]}}'></form>
<script>document.getElementById("f").submit()</script>"""
EMBED = """<!doctype html><title>evil</title><iframe id=a src="{address}"></iframe>
<script src="{address}v1/models"></script><script>window.failed = [];
for (const [tag, key, path] of [["script", "src", "v1/models"], ["link", "href", "page/page.css"],
                               ["img", "src", "v1/models"], ["object", "data", "v1/models"]]) {{
  const e = document.createElement(tag);
  e.onerror = () => window.failed.push(tag);
  if (tag === "link") e.rel = "stylesheet";
  e[key] = "{address}" + path;
  document.body.append(e);
}}</script>"""


@pytest.mark.parametrize("enctype", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_forms_are_refused(site, visit, victim, enctype):
    service, model = victim
    evil = site(html=FORM.format(enctype=enctype, action=f"{service.address}v1/score"))
    page = visit(f"http://evil.example:{evil.port}/")
    page.wait_for_url(f"{service.address}v1/score")
    assert '"code"' in page.content()
    assert model.calls == 0


def test_a_sandboxed_frame_has_no_origin_and_gets_nothing(site, visit, victim):
    service, model = victim
    script = f"""fetch("{service.address}v1/score", {{method: "POST", mode: "no-cors", body: "{{}}"}})
      .then((a) => a.text(), String).then((t) => parent.postMessage(t, "*"))"""
    html = "<title>evil</title><script>addEventListener('message', (e) => document.title = 'got ' + e.data)</script>"
    html += f"<iframe sandbox='allow-scripts' srcdoc='<script>{script}</script>'></iframe>"
    page = visit(f"http://evil.example:{site(html=html).port}/")
    page.wait_for_function("document.title.startsWith('got ')")
    assert page.title() in ("got ", "got TypeError: Failed to fetch")  # opaque, or not sent
    assert model.calls == 0


def test_nothing_is_embedded(site, visit, victim):
    """Neither the page in a frame (clickjacking), nor answers as scripts, styles or pictures."""
    service, model = victim
    page = visit(f"http://evil.example:{site(html=EMBED.format(address=service.address)).port}/")
    page.wait_for_function("window.failed.length >= 2")
    assert {"script", "img"} <= set(page.evaluate("window.failed"))
    frame = next(frame for frame in page.frames if frame != page.main_frame)
    assert frame.url.startswith("chrome-error:")
    assert "pumps" not in frame.content()
    assert model.calls == 0


def test_nothing_that_is_reflected_runs(visit, serve):
    """XSS: markup in each part of an address, opened as a page; in all answers that say it back."""
    service = serve({"digits": Images(), "pumps": Table()})
    quoted = ATTACK.replace('"', "%22")
    places = ("v1/", "v2/models/", "v1/score?model=", "?model=", "#", "page/")
    page = visit(service.address)
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    for place in places:
        for payload in (quoted, "<script>document.title='ran'</script>"):
            page.goto(f"{service.address}{place}{payload}")
            assert page.title() != "ran", place
            assert page.evaluate("document.body.dataset.attacked") is None, place
            assert page.locator("img[src=x]").count() == 0, place
