"""The spend cap: money and requests, checked before each request."""

import io
import json
import os
import time
from pathlib import Path
from typing import Any

from PIL import Image

from thalweg.core import store
from thalweg.core.errors import ThalwegError
from thalweg.monitor.vision.clients.base import Request
from thalweg.monitor.vision.settings import VisionSettings

PIXELS_A_TOKEN = 500  # an image of w x h pixels costs about w h / 750 tokens; fewer, so that the estimate is high
CHARACTERS_A_TOKEN = 2.5  # English has about four
FORM_TOKENS = 800  # of the schema and of what a server adds


class CapReached(ThalwegError):
    """The next request could cost more than is left, so it is not sent."""


class Budget:
    """What was spent and sent, also by earlier processes, and whether the next request may be.

    The ledger, `requests.jsonl`, has a line for each sending, written before it (time, host, model, images, bytes),
    and a line for each cost.
    """

    def __init__(self, settings: VisionSettings, folder: Path):
        self.settings, self.ledger = settings, folder / "requests.jsonl"
        self.calls, self.bytes, self.spent = 0, 0, 0.0
        for line in self.ledger.read_text("utf-8").splitlines() if self.ledger.is_file() else ():
            self._count(json.loads(line))

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """US dollars of so many tokens."""
        s = self.settings
        return (input_tokens * s.price_input + output_tokens * s.price_output) / 1e6

    def estimate(self, request: Request) -> tuple[int, int]:
        """(input, output) tokens that a request may come to at most, by its pixels, letters and `max_tokens`."""
        pixels = sum(width * height for width, height in map(_size, request.images))
        letters = sum(map(len, (request.system, request.prompt, *(request.repair or ()))))
        return int(pixels / PIXELS_A_TOKEN + letters / CHARACTERS_A_TOKEN) + FORM_TOKENS, request.max_tokens

    def require(self, request: Request) -> None:
        """`CapReached` unless the request can be paid."""
        s = self.settings
        if self.calls >= s.max_calls:
            raise CapReached(f"the cap of {s.max_calls} requests is reached")
        if self.spent + self.cost(*self.estimate(request)) > s.max_cost:
            raise CapReached(f"the spend cap of ${s.max_cost:.2f} is reached: ${self.spent:.4f} are spent")

    def note_sending(self, request: Request) -> int:
        """Write down a sending, before it; the bytes of its images."""
        size = sum(map(len, request.images))
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        where = {"host": self.settings.host(), "model": request.model}
        self._write({"sent": now, **where, "images": len(request.images), "bytes": size})
        return size

    def note_cost(self, input_tokens: int, output_tokens: int) -> float:
        """Write down what a reply cost, in US dollars."""
        cost = self.cost(input_tokens, output_tokens)
        self._write({"cost": cost, "input_tokens": input_tokens, "output_tokens": output_tokens})
        return cost

    def _count(self, line: dict[str, Any]) -> None:
        self.calls += "sent" in line
        self.bytes += line.get("bytes", 0)
        self.spent += line.get("cost", 0.0)

    def _write(self, line: dict[str, Any]) -> None:
        """Append a line in one write, so that a kill leaves no half of it."""
        with store.write_errors(self.ledger, None):
            self.ledger.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(descriptor, f"{json.dumps(line)}\n".encode())
            finally:
                os.close(descriptor)
        self._count(line)


def _size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        return image.size
