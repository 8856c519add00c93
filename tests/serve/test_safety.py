"""Limits, tokens, hosts and headers: rows R19, R22, R23, R24 and R25 of the trust table, in short."""

import asyncio
import json
import logging
import struct
import sys
import time
import zlib

import numpy as np
import pytest

from thalweg.core.errors import UserError
from thalweg.serve.app import create_app
from thalweg.serve.errors import public
from thalweg.serve.safety import tokens
from thalweg.serve.safety.bodies import BEYOND, BodyLimitMiddleware
from thalweg.serve.safety.origin import name_of
from thalweg.serve.safety.tokens import hashed, read_tokens
from thalweg.serve.settings import ServeSettings

from .fake_models import MODELS
from .live import exchange, listening, request
from .service import npy, picture, posted, serving

TOKEN, OTHER = "correct-horse-battery-staple", "another-token-of-16-letters"
ROW = json.dumps({"instances": [[1, 2]]}).encode()


@pytest.fixture(scope="module")
def client():
    with serving() as client:
        yield client


# Sizes (R19)


def asked(app, headers, messages):
    """(status, what was read in bytes, headers) of an ASGI application whose body comes in these parts."""
    read, told = 0, {}

    async def receive():
        nonlocal read
        part = next(messages)
        read += len(part.get("body", b""))
        return part

    async def send(message):
        if message["type"] == "http.response.start":
            told.update(status=message["status"], headers=dict(message["headers"]))

    scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": headers}
    asyncio.run(app(scope, receive, send))
    return told["status"], read, told["headers"]


async def reads_all(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def endless(size):
    while True:
        yield {"type": "http.request", "body": bytes(size), "more_body": True}


@pytest.mark.parametrize("part", [1, 1000, 65_536])
def test_a_stream_that_is_too_large_is_refused_within_64_KiB(part):
    """R19: on what has come, whatever is declared."""
    limit = 3000 if part == 1 else 200_000
    status, read, headers = asked(
        BodyLimitMiddleware(reads_all, limit, 30), [(b"transfer-encoding", b"chunked")], endless(part)
    )
    assert status == 413
    assert read <= limit + BEYOND + part
    assert headers[b"connection"] == b"close"


def test_a_body_that_is_declared_too_large_is_refused_before_it_is_read():
    """R19: the answer comes first."""
    seen = []

    def parts():
        seen.append(True)
        yield {"type": "http.disconnect"}

    status, read, _ = asked(BodyLimitMiddleware(reads_all, 1000, 30), [(b"content-length", b"1001")], parts())
    assert (status, read) == (413, 0)


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"9" * 30, b"0x10", b" "])
def test_a_length_that_is_no_number_is_refused(length):
    status, read, _ = asked(BodyLimitMiddleware(reads_all, 1000, 30), [(b"content-length", length)], endless(1))
    assert (status, read <= 1000 + BEYOND) == (413, True)


def test_a_body_of_the_limit_is_taken():
    whole = iter([{"type": "http.request", "body": bytes(1000), "more_body": False}])
    assert asked(BodyLimitMiddleware(reads_all, 1000, 30), [(b"content-length", b"1000")], whole)[:2] == (200, 1000)


def test_a_slow_body_is_refused():
    async def slow():
        await asyncio.sleep(60)

    async def run():
        told = []

        async def send(message):
            told.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/x", "headers": [(b"content-length", b"5")]}
        task = asyncio.create_task(BodyLimitMiddleware(reads_all, 1000, 0.05)(scope, slow, send))
        while not told:
            await asyncio.sleep(0.01)
        task.cancel()
        return told[0]["status"]

    assert asyncio.run(run()) == 408


def test_over_the_wire_the_answer_reaches_a_client_that_still_writes():
    with listening("numbers", max_body=100_000) as port:
        head = request(b"", content_length=str(10**9))
        began = time.perf_counter()
        answer = exchange(port, head, bytes(150_000))
        assert b" 413 " in answer.split(b"\r\n")[0]
        assert time.perf_counter() - began < 10
        chunked = request(b"", content_length=None, transfer_encoding="chunked")
        answer = exchange(port, chunked, *(b"4000\r\n" + bytes(0x4000) + b"\r\n" for _ in range(8)))
        assert b" 413 " in answer.split(b"\r\n")[0]
        assert b"too_large" in answer
        assert b" 200 " in exchange(port, request(ROW)).split(b"\r\n")[0]


def test_a_head_that_grows_is_refused():
    """R19. What comes later counts, after another request too; a long head that ends is taken."""
    begun, more = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: ", bytes(65_000).replace(b"\0", b"a")
    with listening("numbers") as port:
        for first in (begun, b"GET /livez HTTP/1.1\r\n\r\n" * 2 + begun):
            answer = exchange(port, first, more, bytes(600).replace(b"\0", b"a"), pause=0.05)
            head, _, body = answer.partition(b"HTTP/1.1 431 ")[2].partition(b"\r\n\r\n")
            assert json.loads(body)["code"] == "head_too_large"
            assert b"connection: close" in head
        assert exchange(port, begun, more, b"\r\n\r\n", pause=0.05).startswith(b"HTTP/1.1 200 ")


def test_batches_pixels_and_depth_have_limits(client):
    with serving("numbers", "pictures", max_batch=3, max_pixels=10_000, max_depth=5) as small:
        rows = {"instances": [[1, 2]] * 4}
        refused = small.post("/v1/score?model=numbers", json=rows)
        assert (refused.status_code, refused.json()["code"]) == (413, "too_many_rows")
        refused = posted(small, "/v1/score?model=numbers", npy(np.ones((4, 2))), "application/x-npy")
        assert refused.status_code == 413
        refused = posted(small, "/v1/score?model=pictures&fit=true", picture((101, 100), "PNG"), "image/png")
        assert (refused.status_code, refused.json()["code"]) == (413, "too_many_pixels")
    deep = b'{"instances": ' + b"[" * 70 + b"]" * 70 + b"}"
    assert posted(client, "/v1/score?model=numbers", deep).status_code == 400
    assert posted(client, "/v1/score?model=numbers", b"[" * 1_000_000).status_code == 400


def test_a_picture_is_not_decoded_before_its_size_is_known(client):
    """R19, R15: a header that declares 10^10 pixels, behind which there are none."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    for width in (5_000, 20_000, 100_000, 2**31 - 1):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, width, 8, 0, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        refused = posted(client, "/v1/score?model=pictures", bomb, "image/png")
        assert refused.status_code in (400, 413), width


# Tokens (R22)


def test_every_route_but_health_asks_for_a_token(caplog):
    with caplog.at_level(logging.DEBUG), serving("numbers", tokens=(hashed(OTHER), hashed(TOKEN))) as client:
        paths = client.get("/openapi.json", headers={"authorization": f"Bearer {TOKEN}"}).json()["paths"]
        for path, methods in paths.items():
            for method in methods:
                concrete = path.format(model="numbers", version="7")
                health = path in ("/livez", "/readyz") or path.startswith("/v2/health")
                bare = client.request(method, concrete)
                assert (bare.status_code == 401) == (not health), path
                if not health:
                    assert bare.headers["www-authenticate"] == "Bearer"
        for token in (TOKEN, OTHER):
            assert client.get("/v1/models", headers={"authorization": f"bearer {token}"}).status_code == 200
        wrong = (
            "",
            "Bearer",
            "Bearer ",
            f"Basic {TOKEN}",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            TOKEN,
            "Bearer é",
        )
        for value in wrong:
            answer = client.get("/v1/models", headers={"authorization": value.encode()})
            assert answer.status_code == 401, value
            assert TOKEN not in answer.text
        assert TOKEN not in client.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"}).text
        for path in ("/absent", "/v1/absent", "/v2/models/absent", "/docs"):
            assert client.get(path).status_code == 401
    assert TOKEN not in caplog.text


def test_all_tokens_are_compared_whatever_the_first_says(monkeypatch):
    """R22: the time does not tell which token it was, as all hashes are compared in constant time."""
    compared = []
    real = tokens.hmac.compare_digest
    monkeypatch.setattr(tokens.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
    hashes = tuple(hashed(f"{TOKEN}-{i}") for i in range(5))
    with serving("numbers", tokens=hashes) as client:
        for i in range(5):
            compared.clear()
            assert client.get("/v2", headers={"authorization": f"Bearer {TOKEN}-{i}"}).status_code == 200
            assert compared == [(32, 32)] * 5


def test_others_than_loopback_need_a_token():
    for host in ("0.0.0.0", "10.0.0.1", "::", "example.org"):
        with pytest.raises(UserError) as caught:
            create_app({"numbers": MODELS["numbers"]}, ServeSettings(host=host))
        assert caught.value.argument == "--host"
        create_app({"numbers": MODELS["numbers"]}, ServeSettings(host=host, tokens=(hashed(TOKEN),)))
        create_app({"numbers": MODELS["numbers"]}, ServeSettings(host=host, insecure=True))


def test_tokens_are_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("THALWEG_TOKEN", raising=False)
    assert read_tokens(None) == ()
    monkeypatch.setenv("THALWEG_TOKEN", TOKEN)
    assert read_tokens(None) == (hashed(TOKEN),)
    file = tmp_path / "tokens"
    file.write_text(f"{OTHER}\n\n{TOKEN} \n")
    assert read_tokens(file) == (hashed(OTHER), hashed(TOKEN))
    for text in ("", "short", "has spaces in the middle of it"):
        file.write_text(text)
        with pytest.raises(UserError) as caught:
            read_tokens(file)
        assert "spaces" not in str(caught.value) or "has spaces" not in str(caught.value)


# Hosts, origins and headers (R23)


def test_every_answer_says_what_a_browser_may_do(client):
    answers = [client.get(path) for path in ("/v1/models", "/v2", "/livez", "/metrics", "/absent", "/openapi.json")]
    answers += [client.post("/v1/score?model=numbers", json=b) for b in ({"instances": [[1, 2]]}, {"x": 1})]
    answers += [client.get("/v1/models", headers={"host": "evil.example"}), client.delete("/v1/models")]
    answers += [client.post("/v1/sample?model=numbers", json={"n": 1, "frames": 2})]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert "server" not in answer.headers


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1", "localhost:x", "127.0.0.2"]
)
def test_other_hosts_are_refused(client, host):
    """R23: DNS rebinding."""
    refused = client.get("/v1/models", headers={"host": host})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden_host")
    assert client.get("/livez", headers={"host": host}).status_code == 200  # asked by address


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_names_of_this_host_are_taken(client, host):
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


def test_hosts_may_be_added():
    with serving("numbers", allowed_hosts=("scores.example",)) as client:
        assert client.get("/v2", headers={"host": "scores.example:443"}).status_code == 200
        assert client.get("/v2", headers={"host": "other.example"}).status_code == 403
    assert name_of("[::1]:80") == "::1"


@pytest.mark.parametrize(
    "media", ["text/plain", "TEXT/PLAIN; charset=utf-8", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_what_a_page_elsewhere_can_send_unasked_is_refused(client, media):
    """R23: CSRF, by the content types that need no leave of the service."""
    for path in ("/v1/score?model=numbers", "/v1/sample?model=numbers", "/v2/models/numbers/infer"):
        headers = {"origin": "http://localhost", **({"content-type": media} if media else {})}
        assert client.post(path, content=ROW, headers=headers).status_code == 415


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH"])
def test_a_method_that_a_route_has_not_is_405_without_a_content_type_too(client, method):
    assert client.request(method, "/v1/score").status_code == 405


def test_other_origins_are_refused(client):
    for origin in ("http://evil.example", "null", "http://localhost.evil.example", "file://"):
        refused = posted(client, "/v1/score?model=numbers", ROW, origin=origin)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden_origin")
    assert posted(client, "/v1/score?model=numbers", ROW, origin="http://localhost:8000").status_code == 200
    leave = {"origin": "http://localhost", "access-control-request-method": "POST"}
    answer = client.options("/v1/score", headers=leave)
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


# Errors (R24)


def test_what_nobody_expected_is_internal(client, caplog):
    answer = client.post("/v1/score?model=endless", json={"instances": [[8, 0]]})
    assert answer.status_code == 500
    assert answer.json() == {"code": "internal", "field": None, "message": "the service failed; its log says why"}
    assert "secret.py" in caplog.text
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [8, 0]}
    answer = client.post("/v2/models/endless/infer", json={"inputs": [tensor]})
    assert (answer.status_code, answer.json()) == (500, {"error": "the service failed; its log says why"})


def test_a_number_that_is_not_finite_never_goes_out(client):
    answer = client.post("/v1/score?model=endless", json={"instances": [[1, 0], [7, 0]]})
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, "non_finite", "instances[1]")
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [7, 0]}
    assert client.post("/v2/models/endless/infer", json={"inputs": [tensor]}).status_code == 422


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("must exist: /srv/models/run", "must exist: …"),
        ("thalweg.energy.networks.mlp:MLPEnergy fails", "… fails"),
        ("C:\\models\\run is no folder", "… is no folder"),
        ("must be in [0, 1]; divide by 255?", "must be in [0, 1]; divide by 255?"),
        ("km/h and a/b stay", "km/h and a/b stay"),
    ],
)
def test_messages_do_not_tell_of_the_machine(text, told):
    assert public(text) == told


# Paths and addresses (R25)

WATCHED = ("open", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system")
SEEN: list | None = None


def _watch(event, arguments):
    if SEEN is not None and event in WATCHED:
        SEEN.append((event, arguments))


sys.addaudithook(_watch)


def payloads(count):
    """Addresses and paths as attackers write them."""
    schemes = ("http://127.0.0.1:9/", "https://169.254.169.254/latest/", "file:///etc/passwd", "gopher://x/", "//evil/")
    paths = (
        "../../../etc/passwd",
        "/etc/passwd",
        "..\\..\\win.ini",
        "%2e%2e%2fetc",
        "~/.ssh/id_rsa",
        "/proc/self/environ",
    )
    made = [f"{one}{i}" for i in range(count) for one in (*schemes, *paths)]
    return made[:count]


@pytest.mark.parametrize("count", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_no_text_is_taken_for_an_address_or_a_path(client, count):
    """R25: nothing is opened and nothing is connected to, whichever field says so."""
    global SEEN

    def ask(text):
        row = {"age": 1, "city": text}
        yield client.post("/v1/score?model=table", json={"instances": [row]})
        yield client.post("/v1/score?model=words", json={"instances": [text]})
        yield client.post("/v1/score", params={"model": text}, json={"instances": [[1, 2]]})
        yield client.post("/v1/score?model=pictures", json={"instances": [{"shape": [1, 4, 4], "data": text}]})
        yield client.post("/v1/score?model=table", json={"instances": [{text: 1, "city": "a"}]})
        yield posted(client, "/v1/score?model=table", f"age,city\n1,{text}\n", "text/csv")
        tensor = {"name": "city", "shape": [1], "datatype": "BYTES", "data": [text]}
        yield client.post("/v2/models/table/infer", json={"id": text, "inputs": [tensor], "parameters": {"p": text}})
        yield client.get(f"/v2/models/{text.replace('/', '%2f').replace('?', '%3f')}")

    for answer in ask("warm"):  # imports what it needs
        assert answer.status_code < 500
    SEEN = []
    try:
        for text in payloads(count):
            for answer in ask(text):
                assert answer.status_code < 500
        seen = SEEN
    finally:
        SEEN = None
    assert seen == []


def test_the_watch_sees_what_it_should(tmp_path):
    """The mutant of the test above: something that opens a file."""
    global SEEN
    SEEN = []
    (tmp_path / "x").write_text("1")
    seen, SEEN = SEEN, None
    assert seen[0][0] == "open"
