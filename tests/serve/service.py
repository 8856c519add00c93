"""A service of fake models inside the process, and what tests send to it."""

import io
from contextlib import contextmanager

import numpy as np
from starlette.testclient import TestClient

from thalweg.serve.app import create_app
from thalweg.serve.settings import ServeSettings

from .fake_models import MODELS

HOST = "http://localhost"


@contextmanager
def serving(*names, models=MODELS, **settings):
    """A client of a service of these models, all if none is named."""
    chosen = {name: models[name] for name in names or models}
    app = create_app(chosen, ServeSettings(**{"threads": 1, "page": False, **settings}), versions={"numbers": "7"})
    with TestClient(app, base_url=HOST) as client:
        yield client


def posted(client, path, body, media="application/json", **headers):
    return client.post(path, content=body, headers={"content-type": media, **headers})


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def picture(size, format, mode="L", colour=0, **options):
    from PIL import Image

    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, format, **options)
    return file.getvalue()
