"""The short way of scores answers as the ordinary way does, and lets nobody in whom that would not."""

import json

import numpy as np
import pytest

from thalweg.serve.v1.direct import ScoreFastPath

from .service import npy, posted, serving

JSON, NPY = "application/json", "application/x-npy"
TOKEN = "a-token-of-some-length"
BODIES = {
    "rows": (JSON, b'{"instances": [[1, 2], [0.5, 0]]}'),
    "alpha": (JSON, b'{"instances": [[1, 2]], "alpha": 0.5}'),
    "npy": (NPY, npy(np.array([[1.0, 2.0]], np.float32))),
    "refused by the model": (JSON, b'{"instances": [[13, 0]]}'),
    "another shape": (JSON, b'{"instances": [[1, 2, 3]]}'),
    "no JSON": (JSON, b'{"instances": [[1, 2]'),
    "NaN": (JSON, b'{"instances": [[NaN, 2]]}'),
    "no rows": (JSON, b'{"instances": []}'),
    "not finite": (JSON, b'{"instances": [[1e200, 2]]}'),
    "an unknown key": (JSON, b'{"instances": [[1, 2]], "path": "/etc/passwd"}'),
}


@pytest.fixture
def taken(monkeypatch):
    """The number of requests that took the short way."""
    count, answer = [], ScoreFastPath._answer

    async def counted(self, *given):
        count.append(1)
        return await answer(self, *given)

    monkeypatch.setattr(ScoreFastPath, "_answer", counted)
    return count


def told(answer):
    """Status, body and headers but for those that differ from request to request."""
    return (
        answer.status_code,
        json.loads(answer.content),
        {k: v for k, v in answer.headers.items() if k != "x-request-id"},
    )


@pytest.mark.parametrize("body", BODIES)
def test_both_ways_give_the_same(taken, body):
    with serving("numbers") as client:
        media, data = BODIES[body]
        short = posted(client, "/v1/score", data, media)
        assert len(taken) == 1
        ordinary = posted(client, "/v1/score?model=numbers", data, media)
        assert len(taken) == 1
    assert told(short) == told(ordinary)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer another-token-of-length"}, 401),
        ({"authorization": f"Bearer {TOKEN}", "host": "evil.example"}, 403),
        ({"authorization": f"Bearer {TOKEN}", "origin": "http://evil.example"}, 403),
        ({"authorization": f"Bearer {TOKEN}", "content-type": "text/plain"}, 415),
        ({"authorization": f"Bearer {TOKEN}"}, 200),
    ],
    ids=["no token", "another token", "another host", "another origin", "a form's type", "let in"],
)
def test_it_lets_nobody_in(taken, headers, status):
    from thalweg.serve.safety.tokens import hashed

    with serving("numbers", tokens=(hashed(TOKEN),)) as client:
        assert posted(client, "/v1/score", BODIES["rows"][1], **headers).status_code == status
    assert len(taken) == (status == 200)
