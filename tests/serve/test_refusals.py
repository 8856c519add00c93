"""What clients get wrong most often is answered by a line that says where it is and how to mend it."""

import json

import numpy as np
import pytest

from .service import posted, serving

INFER = "/v2/models/table/infer"
ROWS = "30,rome\n"


@pytest.fixture(scope="module")
def client():
    with serving() as service:
        yield service


def tensors(**changed):
    age = {"name": "age", "datatype": "FP64", "shape": [1], "data": [30.0]} | changed
    return {"inputs": [age, {"name": "city", "datatype": "BYTES", "shape": age["shape"][:1], "data": ["rome"]}]}


@pytest.mark.parametrize(
    ("body", "field", "told"),
    [
        (f"age, city\n{ROWS}", "city", "where ' city' has a blank too many"),
        (f",age,city\n0,{ROWS}", "", "one of the inputs age, city, and a column there has no name"),
        (f"\nage,city\n{ROWS}", None, "must begin with a line that names the columns"),
        (ROWS, "age", "the first line must name the columns, age, city, and begins with '30'"),
    ],
)
def test_the_first_line_of_a_csv(client, body, field, told):
    answer = posted(client, "/v1/score?model=table", body, "text/csv")
    assert answer.status_code in (400, 422)
    assert answer.json()["field"] == field
    assert told in answer.json()["message"]


@pytest.mark.parametrize("body", ["\n", "\r\n\r\n"])
def test_texts_without_a_first_line(client, body):
    answer = posted(client, "/v1/score?model=words", body, "text/csv")
    assert (answer.status_code, answer.json()["field"]) == (422, "x")
    assert "the first line must name the columns, x, and is empty" in answer.json()["message"]


def test_a_text_that_is_too_long_is_told_by_its_row(words):
    with serving(models={"words": words.servable()}) as client:
        listed = client.post("/v1/score", json={"instances": ["bama", "b" * 100]})
        table = posted(client, "/v1/score", f"x\nbama\n{'b' * 100}\n", "text/csv")
    for answer, field in ((listed, "instances[1]"), (table, "line 3")):
        assert (answer.status_code, answer.json()["field"]) == (422, field)
        assert "has 100 letters" in answer.json()["message"]


SENT = [
    ("/v1/score?model=table", "application/json", json.dumps({"instances": [[30, "rome"]]})),
    ("/v1/score?model=table", "text/csv", f"age,city\n{ROWS}"),
    ("/v1/sample?model=words", "application/json", "{}"),
    (INFER, "application/json", json.dumps(tensors())),
]


@pytest.mark.parametrize(("path", "media", "body"), SENT, ids=["rows", "csv", "draws", "tensors"])
def test_another_charset_than_utf_8_is_refused(client, path, media, body):
    for charset, written in (("latin-1", "latin-1"), ("utf-16", '"UTF-16"')):
        answer = posted(client, path, body.encode(charset), f"{media}; charset={written}")
        line = f"must be UTF-8, not {charset}; send the body as UTF-8, or leave the charset out"
        told = {"code": "unsupported_media_type", "field": "content-type", "message": line}
        wanted = {"error": f"content-type: {line}"} if path == INFER else told
        assert (answer.status_code, answer.json()) == (415, wanted)
    for charset in ("utf-8", '"UTF-8"', "US-ASCII"):
        assert posted(client, path, body, f"{media}; Charset={charset}").status_code == 200


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"shape": [2**60]}, "age: must have a shape of whole numbers, from 0 to 2^53"),
        ({"data": [[30.0, 1.0]]}, "age: must be a flat list, or nested lists of the shape [1]"),
        ({"datatype": "FP16", "data": [1e6]}, "age: must be finite values of FP16"),
    ],
)
def test_tensors(client, changed, told):
    answer = client.post(INFER, json=tensors(**changed))
    assert (answer.status_code, answer.json()) == (400, {"error": told})


def test_tensors_without_rows(client):
    told = {"inputs": [one | {"shape": [0], "data": []} for one in tensors()["inputs"]]}
    answer = client.post(INFER, json=told)
    assert (answer.status_code, answer.json()) == (400, {"error": "inputs: must have one row or more"})


def test_bytes_behind_the_json_without_its_length(client):
    told = tensors(parameters={"binary_data_size": 8})
    del told["inputs"][0]["data"]
    answer = posted(client, INFER, json.dumps(told).encode() + np.float64(30).tobytes(), "application/octet-stream")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("Inference-Header-Content-Length: must be there and say at which byte")


@pytest.mark.parametrize(
    ("key", "told"), [("model", "as ?model=…"), ("rows", "must be one of the keys instances, alpha")]
)
def test_a_key_that_the_body_has_not(client, key, told):
    answer = client.post("/v1/score?model=table", json={"instances": [{"age": 1, "city": "rome"}], key: "table"})
    assert (answer.status_code, answer.json()["field"]) == (400, key)
    assert told in answer.json()["message"]


def test_a_form_names_a_content_type_to_send(client):
    answer = posted(client, "/v1/score?model=table", "{}", "application/x-www-form-urlencoded")
    assert answer.status_code == 415
    assert "application/json" in answer.json()["message"]


@pytest.mark.parametrize("path", ["health/live", "health/ready", "models/table/ready"])
def test_health_may_be_asked_for_by_head(client, path):
    asked, full = client.head(f"/v2/{path}"), client.get(f"/v2/{path}")
    assert (asked.status_code, asked.headers["content-length"]) == (full.status_code, str(len(full.content)))
    assert full.status_code == 200
