"""Tensors in each datatype that a client may have for a column: the scores of the fit's own values, or one line."""

import json

import numpy as np
import pandas as pd
import pytest

from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.core.errors import UserError

from .service import npy, posted, serving

N = 60
WHOLE = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
FLOATS = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}


def table():
    random = np.random.default_rng(0)
    truth = random.random((N, 4)) < 0.4
    return pd.DataFrame(
        {
            "flow": random.integers(0, 100, N).astype(float),
            "open": truth[:, 0],
            "held": [None if i % 9 == 0 else bool(truth[i, 1]) for i in range(N)],  # pandas' object column
            "lit": np.where(truth[:, 2], "TRUE", "FALSE"),
            "site": np.where(truth[:, 3], "oslo", "rome"),
        }
    )


@pytest.fixture(scope="module")
def detector():
    return EnergyDetector(random_state=0, missing="marginalise").fit(table())


@pytest.fixture(scope="module")
def client(detector):
    with serving(models={"detector": DetectorBundle(detector).servable()}) as service:
        yield service


@pytest.fixture(scope="module")
def rows():
    found = table().iloc[1:9].reset_index(drop=True)  # no gap among them
    return found.assign(held=found["held"].astype(bool))


def tensor(name, datatype, values):
    """(what the JSON holds, the bytes behind it)."""
    values = np.asarray(values)
    if values.dtype == object:
        data = b"".join(len(v.encode()).to_bytes(4, "little") + v.encode() for v in values)
    else:
        data = values.tobytes()
    sized = {"parameters": {"binary_data_size": len(data)}}
    return {"name": name, "datatype": datatype, "shape": [len(values)], **sized}, data


def asked(client, parts, *, binary):
    """The answer to tensors (name, datatype, values)."""
    if not binary:
        told = [{"name": n, "datatype": d, "shape": [len(v)], "data": np.asarray(v).tolist()} for n, d, v in parts]
        return client.post("/v2/models/detector/infer", json={"inputs": told})
    inputs, data = zip(*(tensor(*part) for part in parts), strict=True)
    head = json.dumps({"inputs": inputs}).encode()
    how = {"Inference-Header-Content-Length": str(len(head))}
    return posted(client, "/v2/models/detector/infer", head + b"".join(data), "application/octet-stream", **how)


def energies(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"][0]["data"]


def parts(rows, **datatypes):
    """All columns of the rows as tensors; texts are objects."""
    usual = {"flow": "FP64", "open": "FP64", "held": "FP64", "lit": "BYTES", "site": "BYTES"}
    kinds = {"BYTES": object, "BOOL": bool, **FLOATS, **{name: name.lower() for name in WHOLE}}
    both = ((name, datatypes.get(name, usual[name])) for name in usual)
    return [(name, datatype, rows[name].to_numpy().astype(kinds[datatype])) for name, datatype in both]


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_true_and_false_score_as_the_values_of_the_fit(client, detector, rows, binary):
    """A column of booleans, one of pandas' objects, and one of the texts TRUE and FALSE."""
    wanted = pytest.approx(detector.energy(rows).tolist(), rel=1e-9)
    assert len({*wanted.expected}) > 3
    as_truths = rows.assign(lit=rows["lit"] == "TRUE")
    sent = parts(as_truths, open="BOOL", held="BOOL", lit="BOOL")
    assert energies(asked(client, sent, binary=binary)) == wanted
    told = client.post("/v1/score", json={"instances": json.loads(as_truths.to_json(orient="records"))}).json()
    assert [row["energy"] for row in told["predictions"]] == wanted


@pytest.mark.parametrize("wrong", [2.0, 0.5, -1.0])
def test_another_number_than_1_and_0_is_neither_true_nor_false(client, detector, rows, wrong):
    odd = rows.astype({"open": float, "held": float})
    told = "must be true or false, or 1 and 0, unlike "
    odd.loc[3, "held"] = wrong
    answer = client.post("/v1/score", json={"instances": json.loads(odd.to_json(orient="records"))})
    wanted = {"code": "malformed", "field": "held", "message": f"{told}instances[3]"}
    assert (answer.status_code, answer.json()) == (400, wanted)
    for binary in (False, True):
        answer = asked(client, parts(odd), binary=binary)
        assert (answer.status_code, answer.json()) == (400, {"error": f"held: {told}row 3 (counted from 0)"})
    with pytest.raises(UserError, match="where True or False was in the fit"):
        detector.energy(odd)


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("datatype", [*WHOLE, *FLOATS])
def test_numbers_in_every_datatype_score_as_those_of_the_fit(client, detector, rows, datatype, binary):
    wanted = pytest.approx(detector.energy(rows).tolist(), rel=1e-9)
    assert energies(asked(client, parts(rows, flow=datatype, open=datatype), binary=binary)) == wanted


@pytest.mark.parametrize("datatype", FLOATS)
def test_a_missing_value_is_null_or_nan_in_every_float(client, detector, rows, datatype):
    gap = rows.assign(flow=np.where(rows.index == 2, np.nan, rows["flow"]))
    wanted = pytest.approx(detector.energy(gap).tolist(), rel=1e-9)
    sent = parts(gap, flow=datatype)
    assert energies(asked(client, sent, binary=True)) == wanted
    name, kind, values = sent[0]
    sent[0] = (name, kind, np.array([None if v != v else float(v) for v in values], object))
    assert energies(asked(client, sent, binary=False)) == wanted


@pytest.mark.parametrize(
    ("field", "datatype", "values", "told"),
    [
        ("flow", "BOOL", [True, False], "must be FP64, not BOOL: the fit had numbers there"),
        ("site", "BOOL", [True, False], "must be BYTES, not BOOL: the fit had texts there"),
        ("site", "INT64", [1, 2], "must be BYTES, and holds numbers"),
        ("flow", "BYTES", np.array(["1", "2"], object), "must be FP64, and holds text"),
        ("flow", "INT64", [1, 2**53 + 1], "holds exactly, and 9007199254740993 is none"),
        ("flow", "FP32", np.float32([1, np.inf]), "must hold a finite number, and has none in row 1"),
    ],
)
def test_what_a_column_cannot_hold_is_refused_in_one_line(client, rows, field, datatype, values, told):
    sent = [(n, datatype, values) if n == field else (n, d, v) for n, d, v in parts(rows.head(2))]
    answer = asked(client, sent, binary=True)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(f"{field}: ")
    assert told in answer.json()["error"]


def test_null_in_whole_numbers_names_the_datatypes_that_have_it(client, rows):
    sent = parts(rows.head(2))
    sent[0] = ("flow", "INT64", np.array([1, None], object))
    answer = asked(client, sent, binary=False)
    assert answer.status_code == 400
    assert "null in a float or BYTES tensor" in answer.json()["error"]


def test_an_array_of_booleans_scores_a_table_of_true_and_false():
    frame = pd.DataFrame(np.random.default_rng(0).random((N, 3)) < 0.4, columns=list("abc"))
    detector = EnergyDetector(random_state=0).fit(frame)
    with serving(models={"detector": DetectorBundle(detector).servable()}) as client:
        answer = posted(client, "/v1/score", npy(frame.to_numpy()[:5]), "application/x-npy")
    assert [row["energy"] for row in answer.json()["predictions"]] == pytest.approx(detector.energy(frame[:5]))


def test_a_word_for_a_gap_is_one_in_a_tensor_of_texts_too(rows):
    """As in JSON: not a category that is new."""
    detector = EnergyDetector(random_state=0, missing="marginalise", na_values=["-"]).fit(table())
    gap = rows.assign(site=np.where(rows.index == 2, None, rows["site"]))
    with serving(models={"detector": DetectorBundle(detector).servable()}) as client:
        found = energies(asked(client, parts(gap.fillna({"site": "-"})), binary=True))
    assert found == pytest.approx(detector.energy(gap).tolist(), rel=1e-9)
