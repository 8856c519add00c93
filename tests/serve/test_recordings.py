"""What tritonclient and kserve sent to a live service (`record_clients.py`) is answered as it was then."""

import base64
import json
from pathlib import Path

import pytest

from .fake_models import RATE
from .service import serving

HERE = Path(__file__).parent / "recordings"
LEFT_OUT = ("content-length", "connection", "accept-encoding")


def record(client):
    return json.loads((HERE / f"{client}.json").read_text())


@pytest.fixture(scope="module")
def service():
    with serving() as client:
        yield client


@pytest.mark.parametrize("client", ["triton", "kserve"])
def test_recorded_requests_are_answered_as_they_were(service, client):
    for asked in record(client)["requests"]:
        headers = [(name, value) for name, value in asked["headers"] if name not in LEFT_OUT]
        body = base64.b64decode(asked["body"])
        answer = service.request(asked["method"], asked["path"], content=body, headers=dict(headers))
        assert answer.status_code == asked["status"], asked["path"]
        if asked["path"] == "/v2":  # tells this package's version
            assert answer.json()["name"] == json.loads(base64.b64decode(asked["answer"]))["name"]
            continue
        assert answer.content == base64.b64decode(asked["answer"])
        for name in ("content-type", "inference-header-content-length"):
            assert answer.headers.get(name) == asked["answer_headers"].get(name)


def test_tritonclient_understood_the_answers():
    found = record("triton")["understood"]
    assert found["live"]
    assert found["ready"]
    assert found["model_ready"] == [True, True]
    assert found["absent_ready"] == [False, False]
    assert found["server"] == "thalweg"
    assert [one["datatype"] for one in found["metadata"]["inputs"]] == ["FP64", "BYTES"]
    assert found["binary"]["energy"] == [5.0, 0.25]
    assert found["binary"]["p_value"] == pytest.approx([1 / 6, 0.8])
    assert found["binary"]["flag"] == [p <= RATE for p in found["binary"]["p_value"]]
    assert found["json"] == [[5.0, 0.25], "one", True]
    assert found["mixed"] == [[True, False], [5.0, 0.25]]  # alpha = .5 was kept
    assert found["table"] == [3.0, 2.0]  # missing: NaN, and an empty string
    assert found["table_json"] == [3.0, 4.0]
    assert found["pixels"] == [[pytest.approx(120 / 255)], [1, 2]]
    assert found["texts"] == [3.0, 0.0]
    assert [status for status, _ in found["errors"]] == ["404", "422", "422", "422", "422", "404"]
    assert found["errors"][4][1] == "x: must not be 13"


def test_kserve_understood_the_answers():
    found = record("kserve")["understood"]
    assert found["live"]
    assert found["ready"]
    assert found["model_ready"]
    for how in ("json", "binary"):
        values, asked_as, _ = found[f"numbers_{how}"]
        assert values["energy"] == [5.0, 0.25]
        assert asked_as == "one"
    assert found["table"] == {"energy": [3.0, 3.0]}
    assert "must be one of the models" in found["error"]


def test_recordings_hold_the_binary_extension_both_ways():
    for client in ("triton", "kserve"):
        requests = record(client)["requests"]
        assert any(name == "inference-header-content-length" for one in requests for name, _ in one["headers"])
        assert any("inference-header-content-length" in one["answer_headers"] for one in requests), client
