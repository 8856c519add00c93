"""The Python client, against a service in the same process."""

import numpy as np
import pandas as pd
import pytest

from thalweg.serve.client import ScoringClient, ServiceError

from .service import HOST, serving

IMAGE = np.linspace(0, 1, 16).reshape(1, 4, 4)


@pytest.fixture(scope="module")
def client():
    with serving() as service, ScoringClient(HOST, http=service) as client:
        yield client


def test_what_is_served(client):
    assert {one["name"] for one in client.models()} >= {"numbers", "table"}


def test_scores_of_arrays_frames_and_texts(client):
    found = client.score(np.array([[1.0, 2.0], [0, 0]]), alpha=0.5, model="numbers")
    assert found["energy"].tolist() == [5.0, 0.0]
    assert found["flag"].tolist() == [True, False]
    frame = pd.DataFrame({"city": ["rome", None], "age": [20.0, np.nan]})
    assert client.score(frame, model="table")["energy"].tolist() == [2.0, 2.0]
    assert client.score(["abc"], model="words")["log_prob"].tolist() == [-3.0]
    assert client.score((IMAGE * 255).astype(np.uint8)[None], model="pictures")["energy"] == pytest.approx(8, abs=0.1)


def test_what_else_models_can_do(client):
    assert client.explain(IMAGE[None], model="pictures")[0]["map"].shape == (4, 4)
    assert client.sample(2, seed=3, model="numbers").tolist() == [[3.0, 1.0]] * 2
    assert client.sample(2, model="words") == ["ab", "ab"]
    frames = list(client.sample_frames(2, frames=3, model="pictures"))
    assert [frame.last for frame in frames] == [False, False, True]
    assert frames[0].rows.shape == (2, 1, 4, 4)
    drawn = list(client.inpaint(IMAGE, IMAGE > 0.5, n=2, model="pictures"))
    assert [one.image.shape for one in drawn] == [(1, 4, 4)] * 2
    assert client.rerank([[3, 0], [1, 0]], keep=1, model="numbers").order.tolist() == [1]
    assert client.classify(IMAGE[None], model="pictures")[0]["label"] == "dark"


def test_errors_have_code_and_field(client):
    with pytest.raises(ServiceError) as caught:
        client.score(np.array([[13.0, 0]]), model="numbers")
    assert (caught.value.status, caught.value.code, caught.value.field) == (422, "unusable", "x")
    with pytest.raises(ServiceError, match="model") as caught:
        client.score(np.ones((1, 2)), model="absent")
    assert caught.value.status == 404


def test_it_comes_again_when_it_is_told_to():
    import httpx2

    asked = []

    def answer(request):
        asked.append(request)
        if len(asked) < 3:
            return httpx2.Response(
                429, headers={"retry-after": "0"}, json={"code": "full", "field": None, "message": ""}
            )
        return httpx2.Response(200, json={"models": []})

    with ScoringClient(
        HOST, retries=2, http=httpx2.Client(base_url=HOST, transport=httpx2.MockTransport(answer))
    ) as client:
        assert client.models() == []
    asked.clear()
    with ScoringClient(
        HOST, "a-token-of-mine-here", http=httpx2.Client(base_url=HOST, transport=httpx2.MockTransport(answer))
    ) as client:
        with pytest.raises(ServiceError) as caught:
            client.models()
        assert caught.value.code == "full"
    assert asked[0].headers["authorization"] == "Bearer a-token-of-mine-here"


def test_a_service_that_is_not_there_is_an_error_of_its_own():
    with ScoringClient("http://127.0.0.1:1", timeout=1) as client, pytest.raises(ServiceError) as caught:
        client.models()
    assert caught.value.code == "unreachable"
