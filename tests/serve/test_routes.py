"""The plain routes: every way to send rows, every capability, and what is answered."""

import base64
import json

import numpy as np
import pytest

from thalweg.core.errors import UserError
from thalweg.serve.client import ScoringClient
from thalweg.serve.engine.scoring import InThread

from .fake_models import Pictures
from .service import HOST, npy, picture, posted, serving

GREY = np.linspace(0, 1, 16).round(4).reshape(1, 4, 4)
BYTES = {"shape": [1, 4, 4], "data": base64.b64encode(bytes(range(16))).decode()}


@pytest.fixture(scope="module")
def client():
    with serving() as client:
        yield client


def score(client, model, instances, **more):
    answer = client.post(f"/v1/score?model={model}", json={"instances": instances, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def test_models_are_described(client):
    models = {one["name"]: one for one in client.get("/v1/models").json()["models"]}
    assert models["numbers"]["version"] == "7"
    assert models["numbers"]["can"] == ["score", "sample", "rerank"]
    assert sum(models["numbers"]["histogram"]["counts"]) == 100
    assert models["pictures"]["labels"] == ["dark", "light"]
    assert models["table"]["inputs"][1] == {"name": "city", "datatype": "BYTES", "shape": [-1]}
    assert models["table"]["histogram"] is None


def test_rows_of_numbers(client):
    found = score(client, "numbers", [[1, 2], [0.5, 0]])
    assert found[0] == {"energy": 5.0, "p_value": pytest.approx(1 / 6), "flag": False}
    assert found[1]["energy"] == 0.25


def test_alpha_of_the_body_of_the_query_and_the_default(client):
    rows = {"instances": [[1, 2]]}
    ask = lambda query, **more: client.post(f"/v1/score?model=numbers{query}", json={**rows, **more}).json()  # noqa: E731
    assert not ask("")["predictions"][0]["flag"]
    assert ask("&alpha=0.5")["predictions"][0]["flag"]
    assert ask("", alpha=0.5)["predictions"][0]["flag"]
    assert not ask("&alpha=0.5", alpha=0.01)["predictions"][0]["flag"]


@pytest.mark.parametrize(
    "row",
    [{"age": 30, "city": "rome"}, {"city": "rome", "age": 30.0}, [30, "rome"]],
    ids=["object", "other order", "list"],
)
def test_rows_of_a_table(client, row):
    assert score(client, "table", [row])[0]["energy"] == 3.0


def test_missing_values_of_a_table(client):
    assert [row["energy"] for row in score(client, "table", [[None, "rome"], [None, None]])] == [1.0, 2.0]


@pytest.mark.parametrize("image", [GREY.tolist(), GREY[0].tolist()], ids=["C,H,W", "H,W"])
def test_images_as_lists(client, image):
    assert score(client, "pictures", [image])[0]["energy"] == pytest.approx(GREY.sum(), rel=1e-6)


def test_images_as_bytes_and_mixed(client):
    found = score(client, "pictures", [BYTES, GREY.tolist()])
    assert found[0]["energy"] == pytest.approx(sum(range(16)) / 255, rel=1e-6)
    assert found[1]["energy"] == pytest.approx(GREY.sum(), rel=1e-6)
    assert len(found[0]["probabilities"]) == 2


@pytest.mark.parametrize(
    "array",
    [GREY[None], GREY, GREY[None].astype(">f4"), np.asfortranarray(GREY[None].repeat(2, 0)), np.round(GREY * 255)],
    ids=["f8", "one", "big-endian", "fortran", "uint8"],
)
def test_images_as_npy(client, array):
    array = array.astype(np.uint8) if array.max() > 1 else array
    answer = posted(client, "/v1/score?model=pictures", npy(array), "application/x-npy").json()
    wanted = np.round(GREY * 255).sum() / 255 if array.dtype == np.uint8 else GREY.sum()
    assert [row["energy"] for row in answer["predictions"]] == pytest.approx([wanted] * len(answer["predictions"]))


@pytest.mark.parametrize(
    ("format", "mode"), [("PNG", "L"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "L")]
)
def test_a_picture(client, format, mode):
    body = picture((4, 4), format, mode, colour=(0, 0, 0, 255) if mode == "RGBA" else 0)
    answer = posted(client, "/v1/score?model=pictures", body, f"image/{format.lower()}")
    assert answer.json()["predictions"][0]["energy"] == 0


def test_a_picture_is_read_as_a_viewer_shows_it(client):
    """Transparent parts are white; the orientation of EXIF is applied before the size is asked; 16 bits are scaled."""
    from PIL import Image

    turned = Image.Exif()
    turned[0x0112] = 6
    bodies = {
        "clear": (picture((4, 4), "PNG", "RGBA", colour=(9, 9, 9, 0)), 16),
        "deep": (picture((4, 4), "PNG", "I;16", colour=0x80FF), 16 * 0x80 / 255),
        "turned": (picture((8, 4), "PNG", colour=255, exif=turned), None),
    }
    for body, energy in bodies.values():
        answer = posted(client, "/v1/score?model=pictures", body, "image/png")
        if energy is None:
            assert "is 4 x 8" in answer.json()["message"]
        else:
            assert answer.json()["predictions"][0]["energy"] == pytest.approx(energy, rel=1e-6)


def test_a_picture_of_another_size_is_refused_or_fitted(client):
    body = picture((8, 4), "PNG", colour=255)
    refused = posted(client, "/v1/score?model=pictures", body, "image/png")
    assert (refused.status_code, refused.json()["code"]) == (422, "wrong_size")
    assert "4 x 4" in refused.json()["message"]
    assert "8 x 4" in refused.json()["message"]
    fitted = posted(client, "/v1/score?model=pictures&fit=true", body, "image/png")
    assert fitted.json()["predictions"][0]["energy"] == 16


def test_csv_rows_by_the_names_of_columns(client):
    answer = posted(client, "/v1/score?model=table", "city,age\nrome,20\n,NA\n\n", "text/csv; charset=utf-8")
    assert [row["energy"] for row in answer.json()["predictions"]] == [2.0, 2.0]


def test_texts(client):
    assert score(client, "words", ["abc", ""]) == [{"energy": 3.0, "log_prob": -3.0}, {"energy": 0.0, "log_prob": 0.0}]
    answer = posted(client, "/v1/score?model=words", 'x\nabc\n"a,b"\n', "text/csv")
    assert [row["energy"] for row in answer.json()["predictions"]] == [3.0, 3.0]


def test_an_empty_line_of_texts_is_an_empty_text(client):
    """So that answers and lines are as many; a text with a comma that is not quoted is refused by its line."""
    answer = posted(client, "/v1/score?model=words", "x\nabc\n\nab\n", "text/csv")
    assert [row["energy"] for row in answer.json()["predictions"]] == [3.0, 0.0, 2.0]
    refused = posted(client, "/v1/score?model=words", "x\nabc\n\na,b\n", "text/csv").json()
    assert (refused["code"], refused["field"]) == ("malformed", "line 4")


def test_what_is_wrong_is_called_as_the_body_calls_it(client):
    """A label by the name that the request has, the two images of a completion by theirs, a row by its place."""

    class Labelled(Pictures):
        def sample_frames(self, n, *, label=None, **how):
            raise UserError("must be classes of the model, 0 to 1", argument="labels", value=label)
            yield

    with serving(models={"one": Labelled()}) as other:
        assert other.post("/v1/sample", json={"label": 10}).json()["field"] == "label"
    small, whole = [[0, 1]], GREY.round().tolist()
    for image, observed, field in ((small, whole, "image"), (whole, small, "observed")):
        refused = client.post("/v1/inpaint?model=pictures", json={"image": image, "observed": observed})
        assert (refused.status_code, refused.json()["field"]) == (422, field)
        assert refused.json()["message"] == "must have the shape (1, 4, 4), and has (1, 2)"
    assert client.post("/v1/score?model=words", json={"instances": ["a", 1]}).json()["field"] == "instances[1]"


def test_an_array_without_rows_is_called_so(client):
    for shape in ((0, 2), (2, 0)):
        refused = posted(client, "/v1/score?model=numbers", npy(np.zeros(shape)), "application/x-npy")
        assert refused.status_code == 400
        assert "one row or more" in refused.json()["message"]


def test_reasons_of_a_table(client):
    answer = client.post("/v1/explain?model=table&top=1", json={"instances": [[30, "rome"], [None, "oslo"]]}).json()
    first, second = answer["predictions"]
    assert first["reasons"] == [{"feature": "age", "share": 0.5, "value": 30.0, "repair": 0.0}]
    assert second["reasons"][0]["value"] is None
    assert first["energy"] == 3.0


def test_reasons_of_an_image_as_lists_and_packed(client):
    lists = client.post("/v1/explain?model=pictures", json={"instances": [GREY.tolist()]}).json()["predictions"][0]
    assert np.allclose(lists["map"], GREY[0])
    assert np.shape(lists["repaired"]) == (1, 4, 4)
    packed = client.post("/v1/explain?model=pictures&encoding=base64", json={"instances": [GREY.tolist()]}).json()
    found = packed["predictions"][0]["map"]
    assert (found["shape"], found["low"], found["high"]) == ([4, 4], 0.0, 1.0)
    assert np.allclose(np.frombuffer(base64.b64decode(found["data"]), np.uint8), GREY.ravel() * 255, atol=0.5)


def test_draws(client):
    draw = lambda model, **asked: client.post(f"/v1/sample?model={model}", json=asked).json()["predictions"]  # noqa: E731
    assert draw("numbers", n=2, seed=3, temperature=0.5) == [[3.0, 0.5]] * 2
    assert draw("words", n=2) == ["ab", "ab"]
    assert np.shape(draw("pictures", n=3)) == (3, 1, 4, 4)
    packed = client.post("/v1/sample?model=pictures&encoding=base64", json={"n": 2, "seed": 255}).json()["predictions"]
    assert packed == {"shape": [2, 1, 4, 4], "data": base64.b64encode(b"\xff" * 32).decode()}


class Drawing(Pictures):
    """Each pixel is the class that was asked for."""

    def sample(self, n, *, seed=0, temperature=1.0, label=None):
        return np.full((n, 1, 4, 4), label, np.float32)


@pytest.mark.parametrize("label", [1, 1.0, "1", "light"])
def test_draws_of_a_class_by_its_number_or_its_name(label):
    with serving(models={"drawing": Drawing()}) as client:
        assert np.all(client.post("/v1/sample", json={"label": label}).json()["predictions"])
        lines = client.post("/v1/sample", json={"label": label, "frames": 2}).text.splitlines()
        assert json.loads(lines[-1])["energies"] == [16]
        drawn = ScoringClient(HOST, http=client).sample(1, label=label)
    assert (drawn == 1).all()


@pytest.mark.parametrize(
    ("model", "label", "status", "told"),
    [
        ("pictures", "grey", 422, "must be a class of the model; there are: dark, light"),
        ("pictures", "2", 422, "must be a class of the model; there are: dark, light"),
        ("words", "dark", 422, "must be left out, as words has no classes"),
        ("pictures", True, 400, "must be the number of a class, or its name"),
        ("pictures", 0.5, 400, "must be the number of a class, or its name"),
        ("pictures", ["dark"], 400, "must be the number of a class, or its name"),
        ("pictures", -1, 400, "must be 0 or more"),
        ("pictures", 2**63, 400, f"must be {2**63 - 1} or less"),
        ("pictures", "a" * 1001, 400, "must have 1000 characters or fewer"),
    ],
    ids=str,
)
def test_a_label_that_is_no_class_is_refused(client, model, label, status, told):
    answer = client.post(f"/v1/sample?model={model}", json={"label": label})
    code = {422: "unusable", 400: "malformed"}[status]
    assert (answer.status_code, answer.json()) == (status, {"code": code, "field": "label", "message": told})


def test_draws_on_their_way(client):
    answer = client.post("/v1/sample?model=pictures", json={"n": 2, "frames": 3})
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [(line["frame"], line["last"]) for line in lines] == [(0, False), (1, False), (2, True)]
    assert len(lines[0]["energies"]) == 2
    assert lines[0]["rows"]["shape"] == [2, 1, 4, 4]


@pytest.mark.parametrize("mask", [np.tri(4)[None].tolist(), np.tri(4).tolist()], ids=["C,H,W", "H,W"])
def test_completions(client, mask):
    asked = {"image": GREY.tolist(), "observed": mask, "n": 2, "seed": 0}
    lines = [json.loads(line) for line in client.post("/v1/inpaint?model=pictures", json=asked).text.splitlines()]
    assert [line.get("completion") for line in lines] == [0, 1, None]
    assert lines[-1] == {"done": True}
    pixels = np.frombuffer(base64.b64decode(lines[0]["image"]["data"]), np.uint8).reshape(4, 4)
    assert (pixels[np.tri(4) == 0] == 0).all()
    assert np.allclose(pixels[np.tri(4) == 1], np.round(GREY[0][np.tri(4) == 1] * 255))
    assert lines[0]["energy"] == pytest.approx((GREY[0] * np.tri(4)).sum(), rel=1e-5)


def test_an_error_inside_a_stream_is_its_last_line():
    class Failing(Pictures):
        def inpaint(self, x, observed, *, n=1, seed=0):
            yield x
            raise RuntimeError("/srv/secret")

    asked = {"image": GREY.tolist(), "observed": GREY.round().tolist(), "n": 2}
    with serving(models={"failing": Failing()}) as client:
        lines = [json.loads(line) for line in client.post("/v1/inpaint", json=asked).text.splitlines()]
    assert lines[0]["completion"] == 0
    assert lines[-1]["error"]["code"] == "internal"
    assert "secret" not in json.dumps(lines)


def test_reasons_orders_and_classes_are_computed_where_scores_are(client, monkeypatch):
    asked, scoring = [], client.app.state.engine.scoring

    def call_method(model, name, *values, **options):
        asked.append(name)
        return InThread.call_method(scoring, model, name, *values, **options)

    monkeypatch.setattr(scoring, "call_method", call_method)
    for path, instance in (("explain?model=table", [30, "rome"]), ("rerank?model=numbers", [1, 1])):
        assert client.post(f"/v1/{path}", json={"instances": [instance]}).status_code == 200
    assert client.post("/v1/classify?model=pictures", json={"instances": [GREY.tolist()]}).status_code == 200
    assert asked == ["explain", "rerank", "classify"]


def test_the_order_of_candidates(client):
    asked = {"instances": [[3, 0], [1, 0], [2, 0]], "keep": 2}
    answer = client.post("/v1/rerank?model=numbers", json=asked).json()
    assert answer["order"] == [1, 2]
    assert [row["energy"] for row in answer["predictions"]] == [9.0, 1.0, 4.0]


def test_labels(client):
    answer = client.post("/v1/classify?model=pictures", json={"instances": [np.ones((1, 4, 4)).tolist()]}).json()
    assert answer["predictions"] == [{"label": "light", "probabilities": {"dark": 0.0, "light": 1.0}}]


def test_what_a_model_cannot_do_is_said(client):
    answer = client.post("/v1/inpaint?model=table", json={})
    assert (answer.status_code, answer.json()["code"]) == (501, "not_supported")
    assert "score, explain" in answer.json()["message"]


def test_one_model_need_not_be_named():
    with serving("numbers") as client:
        assert client.post("/v1/score", json={"instances": [[1, 1]]}).json()["model"] == "numbers"
    with serving("numbers", "table") as client:
        assert client.post("/v1/score", json={"instances": [[1, 1]]}).status_code == 400


def test_a_shorter_deadline_may_be_asked_for(client):
    body = json.dumps({"instances": [[1, 1]]})
    assert posted(client, "/v1/score?model=numbers", body, **{"request-timeout-ms": "20000"}).status_code == 200
    for wrong in ("0.5", "-1", "x", "1" * 20):
        refused = posted(client, "/v1/score?model=numbers", body, **{"request-timeout-ms": wrong})
        assert (refused.status_code, refused.json()["field"]) == (400, "Request-Timeout-Ms")


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"n": 0}, "n", "must be 1 or more"),
        ({"n": 101}, "n", "must be 100 or less"),
        ({"n": "two"}, "n", "must be a whole number"),
        ({"seed": 2**63}, "seed", f"must be {2**63 - 1} or less"),
        ({"temperature": 0}, "temperature", "must be greater than 0"),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"warmth": 1}, "warmth", "must be left out, as this route does not know it"),
    ],
)
def test_what_must_hold_is_said_in_our_words(body, field, message):
    with serving("numbers") as client:
        answer = client.post("/v1/sample", json=body)
        assert (answer.status_code, answer.json()) == (400, {"code": "malformed", "field": field, "message": message})
        answer = client.post("/v1/explain?top=many&model=numbers", json={"instances": [[1, 1]]})
        assert answer.json()["message"] == "must be a whole number"
        answer = client.post("/v1/sample?encoding=x", json={})
        assert answer.json()["message"] == "must be 'lists' or 'base64'"
