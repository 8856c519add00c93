"""Records what the public clients of the Open Inference Protocol send, and what they make of the answers.

    python -m venv A && A/bin/pip install 'tritonclient[http]==2.73.0'
    python -m venv B && B/bin/pip install 'kserve==0.21.0'
    python -m tests.serve.record_clients A/bin/python B/bin/python

A service of the models of `fake_models.py` runs on a free port of 127.0.0.1; each client, in its own environment as its
pins clash with ours, does what `clients/CLIENT.py` says. `recordings/CLIENT.json` then holds the requests as they came
in, the answers, and what the client understood; `test_recordings.py` sends the requests again.
"""

import base64
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import uvicorn

from thalweg.serve.app import create_app
from thalweg.serve.settings import ServeSettings

from .fake_models import MODELS

HERE = Path(__file__).parent
CLIENTS = ("triton", "kserve")
KEPT = ("content-type", "inference-header-content-length", "content-length")


class Recorder:
    """Keeps each request and its answer."""

    def __init__(self, app):
        self.app, self.found = app, []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, told = [], {"answer": b""}

        async def receiving():
            message = await receive()
            body.append(message.get("body", b""))
            return message

        async def sending(message):
            if message["type"] == "http.response.start":
                told["status"] = message["status"]
                told["answer_headers"] = {k.decode(): v.decode() for k, v in message["headers"] if k.decode() in KEPT}
            told["answer"] += message.get("body", b"")
            await send(message)

        await self.app(scope, receiving, sending)
        headers = [[k.decode(), v.decode()] for k, v in scope["headers"] if k not in (b"host", b"user-agent")]
        asked = {"method": scope["method"], "path": scope["raw_path"].decode(), "headers": headers}
        packed = {"body": base64.b64encode(b"".join(body)).decode(), **told}
        self.found.append({**asked, **packed, "answer": base64.b64encode(told["answer"]).decode()})


def main(pythons):
    for client, python in zip(CLIENTS, pythons, strict=True):
        settings = ServeSettings(threads=1, page=False)
        recorder = Recorder(create_app(MODELS, settings, versions={"numbers": "7"}))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(recorder, port=port, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        drive = [python, str(HERE / "clients" / f"{client}.py"), f"127.0.0.1:{port}"]
        done = subprocess.run(drive, capture_output=True, text=True, timeout=300)
        server.should_exit = True
        thread.join()
        if done.returncode:
            sys.exit(done.stderr)
        understood = json.loads(done.stdout.splitlines()[-1])
        record = {"client": understood.pop("client"), "understood": understood, "requests": recorder.found}
        (HERE / "recordings" / f"{client}.json").write_text(json.dumps(record, indent=1) + "\n")
        print(client, len(recorder.found), "requests", understood)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
