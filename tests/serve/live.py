"""A service on a free port of 127.0.0.1, in a thread, for tests of bytes on the wire."""

import socket
import threading
import time
from contextlib import contextmanager

from thalweg.serve.app import create_app
from thalweg.serve.server import Server
from thalweg.serve.settings import ServeSettings

from .fake_models import MODELS


@contextmanager
def listening(*names, models=MODELS, **settings):
    """The port of a service of these models, all if none is named."""
    how = ServeSettings(**{"threads": 1, "page": False, **settings})
    app = create_app({name: models[name] for name in names or models}, how)
    with socket.socket(proto=socket.IPPROTO_TCP) as taken:
        taken.bind(("127.0.0.1", 0))
        server = Server(app, app.state.engine, how, taken)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield taken.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


def exchange(port, *parts, pause=0.0, longest=20.0):
    """What comes back for these bytes, until the service closes or is silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=longest) as wire:
        for part in parts:
            try:
                wire.sendall(part)
            except OSError:  # closed while we write
                break
            time.sleep(pause)
        found = b""
        try:
            wire.settimeout(longest)
            while part := wire.recv(65536):
                found += part
                if complete(found):
                    break
        except OSError:
            pass
        return found


def complete(answer):
    """Whether a whole answer of declared length has come."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(end and length) and len(body) >= int(length[0].split(b":")[1])


def request(body, *, path="/v1/score", **headers):
    """The bytes of a POST."""
    told = {"host": "localhost", "content_type": "application/json", "content_length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in told.items() if value is not None)
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body
