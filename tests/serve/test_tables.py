"""Tables over HTTP are read by the rules that are stored with the model: answers are those of the command line."""

import csv
import json

import numpy as np
import pandas as pd
import pytest

from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.apps.anomaly.tables.fit_file import fit_file
from thalweg.apps.anomaly.tables.score_file import score_file
from thalweg.apps.anomaly.tables.training_rows import Source
from thalweg.data.columns.column_reader import NEW
from thalweg.serve.client import ScoringClient, ServiceError
from thalweg.serve.engine.cost import example

from .service import HOST, posted, serving

HEADER = "id,flow,site,open,zip"
LINES = [f'{i},"{4 + i % 7},{i % 10}",{["NA", "oslo", "rome"][i % 3]},{i % 2 == 0},{10 + i % 4}' for i in range(60)]
ODD = ['7,"9,198",NA,True,11', "8,-,oslo,FALSE,12", '9,"4,5",bergen,,10', "1,,,,"]


def fitted(path, **parameters):
    path.write_text("\n".join([HEADER, *LINES, ""]))
    how = {"decimal": ",", "na_values": ["-"], "dtype": {"zip": "category"}, "missing": "marginalise"}
    return fit_file(Source(path=path), **how | parameters)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def detector(folder):
    """Fitted on commas in numbers, "-" for a gap, NA as a category, an id, true and false, and codes."""
    return fitted(folder / "odd.csv")


@pytest.fixture(scope="module")
def strict(folder):
    return fitted(folder / "strict.csv", missing="raise")


@pytest.fixture(scope="module")
def client(detector, strict):
    models = {"odd": detector.servable(), "strict": strict.servable()}
    with serving(models=models) as service:
        yield service


def of_command(detector: DetectorBundle, lines, folder):
    """Energies of `thalweg detect score`, to be equal up to the rounding of batches."""
    table, out = folder / "new.csv", folder / "scores.csv"
    table.write_text("\n".join([HEADER, *lines, ""]))
    score_file(detector, table, out)
    with out.open() as file:
        return pytest.approx([float(row["energy"]) for row in csv.DictReader(file)], rel=1e-9)


def energies(answer, output="energy"):
    assert answer.status_code == 200, answer.text
    return [row[output] for row in answer.json()["predictions"]]


def test_a_csv_gives_the_scores_of_the_command(client, detector, folder):
    """With the table that the fit had, and with one without the column that it left out."""
    lines = [*ODD, *LINES]
    wanted = of_command(detector, lines, folder)
    assert len({*wanted.expected}) > 3
    body = "\n".join([HEADER, *lines, ""])
    assert energies(posted(client, "/v1/score?model=odd", body, "text/csv")) == wanted
    bare = "\n".join(line.partition(",")[2] for line in body.splitlines())
    assert energies(posted(client, "/v1/score?model=odd", bare, "text/csv")) == wanted


def test_json_and_the_client_give_the_same(client, detector, folder):
    """True and false, texts with a decimal comma, a word for a gap, and a column that the fit left out."""
    wanted = of_command(detector, ODD[:3], folder)
    instances = [
        {"id": 7, "flow": 9.198, "site": "NA", "open": True, "zip": "11"},
        {"flow": "-", "site": "oslo", "open": False, "zip": "12"},
        {"flow": "4,5", "site": "bergen", "open": None, "zip": "10"},
    ]
    assert energies(client.post("/v1/score?model=odd", json={"instances": instances})) == wanted
    frame = pd.DataFrame({"id": [7], "flow": [9.198], "site": ["NA"], "open": [True], "zip": ["11"]})
    asked = ScoringClient(HOST, http=client)
    assert asked.score(frame, model="odd")["energy"].tolist() == of_command(detector, ODD[:1], folder)
    with pytest.raises(ServiceError) as caught:
        asked.score(frame.assign(flow=True), model="odd")
    assert caught.value.field == "flow"


def test_categories_that_the_model_does_not_know_are_told_as_by_the_command(client, detector, folder, caplog):
    """Blanks make another value, and a slash no path, here and there; on every route, and by the client."""
    lines = ['1,"4,5", oslo,True,10', '2,"4,5",/ma  rs,True,99', '3,"4,5",/ma  rs,,10', '4,"4,5",,True,10']
    wanted = of_command(detector, lines, folder)
    (told,) = (line.partition(": ")[2] for line in caplog.messages if "does not know" in line)
    assert "'site' in 3 rows ('/ma  rs', ' oslo')" in told
    body = "\n".join([HEADER, *lines, ""])
    for route in ("score", "explain"):
        answer = posted(client, f"/v1/{route}?model=odd", body, "text/csv")
        assert energies(answer) == wanted
        assert answer.json()["warnings"] == [told]
    sites = [" oslo", "/ma  rs", "/ma  rs", None]
    frame = pd.DataFrame({"flow": [4.5] * 4, "site": sites, "open": [True, True, None, True]})
    frame["zip"] = ["10", "99", "10", "10"]
    asked = ScoringClient(HOST, http=client)
    with pytest.warns(UserWarning, match="does not know") as caught:
        assert asked.score(frame, model="odd")["energy"].tolist() == wanted
    assert [(str(one.message), one.filename) for one in caught] == [(told, __file__)]
    kinds = {"flow": "FP64", "site": "BYTES", "open": "FP64", "zip": "BYTES"}
    values = json.loads(frame.to_json(orient="columns"))
    tensors = [
        {"name": name, "datatype": kind, "shape": [4], "data": [*values[name].values()]} for name, kind in kinds.items()
    ]
    tensors[2]["data"] = [1.0, 1.0, None, 1.0]
    answer = client.post("/v2/models/odd/infer", json={"inputs": tensors}).json()
    assert answer["parameters"] == {"warnings": told}
    known = "\n".join([HEADER, LINES[0], ""])
    assert "warnings" not in posted(client, "/v1/score?model=odd", known, "text/csv").json()


def test_a_row_without_gaps_and_new_categories_is_measured(detector):
    """Another one costs less (nothing is there to compute), or more (a frame is made): tried against both."""
    row = example(detector.servable())
    assert row is not None
    x = detector.detector.columns_.encode_arrays(row)
    assert x is not None
    assert np.isfinite(x).all()
    assert not (x == NEW).any()


def test_a_row_without_any_value_is_the_most_normal_one_everywhere(client, detector, folder):
    wanted = of_command(detector, [ODD[3]], folder)
    asked = {"instances": [{"flow": None, "site": None, "open": None, "zip": None}]}
    of_json = client.post("/v1/score?model=odd", json=asked)
    of_csv = posted(client, "/v1/score?model=odd", f"{HEADER}\n{ODD[3]}\n", "text/csv")
    for answer in (of_json, of_csv):
        assert energies(answer) == wanted
        assert energies(answer, "p_value") == [1]


GOOD = '1,"4,5",oslo,True,10'


@pytest.mark.parametrize(
    ("body", "status", "field", "told"),
    [
        (f"{HEADER}\n\n{GOOD}\n{GOOD.replace('4,5', '4.198')}\n", 422, "flow", ("'4.198' in line 4", "as decimal")),
        (f"{HEADER}\n{GOOD}\n{GOOD.replace('True', 'maybe')}\n", 422, "open", ("'maybe' in line 3",)),
        (f"{HEADER}\n{GOOD}\n{GOOD.replace('True', '2')}\n", 422, "open", ("'2' in line 3, where True or False was",)),
        (f"{HEADER}\n{GOOD}\n{GOOD.replace('4,5', 'inf')}\n", 422, "flow", ("finite", "line 3")),
        (f"{HEADER}\n{GOOD}\n{GOOD.replace('4,5', '4' * 200)}\n", 422, "flow", ("200 letters in line 3",)),
        (f"{HEADER}\n{GOOD}\n{GOOD.replace('oslo', '')}\n", 422, "site", ("line 3", "--missing marginalise")),
        (f"{HEADER}\n{GOOD}\n{GOOD.replace('4,5', '-')}\n", 422, "flow", ("line 3", "--missing marginalise")),
        (f"{HEADER}\n{GOOD}\n1,2\n", 400, None, ("too many or too few",)),
        ("flow;site;open;zip\n1;a;True;1\n", 400, None, ("semicolons", "commas")),
        ("flow\n1\n", 422, "site", ("names one column, 'flow'", "commas")),
        (f"{HEADER},new\n{GOOD},1\n", 422, "new", ("must be one of the inputs",)),
        (f"{HEADER}\n{GOOD}\n".encode("utf-16"), 400, None, ("UTF-8",)),
        (f"{HEADER}\n", 400, "instances", ("one row or more",)),
        (f"{GOOD}\n{GOOD}\n", 422, "flow", ("first line must name the columns, flow, site, open, zip", "with '1'")),
        (f"{HEADER},zip\n{GOOD},10\n", 400, None, ("column 'zip' there twice",)),
    ],
    ids=range(15),
)
def test_a_refused_csv_names_column_line_and_remedy(client, body, status, field, told):
    answer = posted(client, "/v1/score?model=strict", body, "text/csv")
    assert (answer.status_code, answer.json()["field"]) == (status, field), answer.text
    for words in told:
        assert words in answer.json()["message"], answer.text


def test_a_table_without_names_is_taken_with_and_without_a_first_line_of_them(tmp_path):
    """As the command takes it, where the fit had no names."""
    rows = [f"{i % 7}.5,{i % 5},{['oslo', 'rome'][i % 2]}" for i in range(60)]
    (tmp_path / "bare.csv").write_text("\n".join(rows))
    found = fit_file(Source(path=tmp_path / "bare.csv", header=False))
    score_file(found, tmp_path / "bare.csv", tmp_path / "scores.csv", header=False)
    wanted = pytest.approx(pd.read_csv(tmp_path / "scores.csv")["energy"].tolist(), rel=1e-9)
    with serving(models={"bare": found.servable()}) as client:
        for lines in (rows, ["0,1,2", *rows]):
            assert energies(posted(client, "/v1/score", "\n".join(lines), "text/csv")) == wanted
        wrong = posted(client, "/v1/score", "\n".join([rows[0], "?,1,oslo"]), "text/csv").json()
        assert "'?' in line 2" in wrong["message"]
        named = posted(client, "/v1/score", "\n".join(["a,b,c", *rows]), "text/csv").json()
        assert "the first line must name the columns, 0, 1, 2, and begins with 'a'" in named["message"]


def test_a_missing_value_in_json_names_column_and_place(client):
    row = {"flow": 1.0, "site": "oslo", "open": True, "zip": "10"}
    for name in row:
        asked = {"instances": [row, row | {name: None}]}
        told = client.post("/v1/score?model=strict", json=asked).json()
        assert told["field"] == name
        assert "instances[1]" in told["message"]
        assert "--missing marginalise" in told["message"]
    told = client.post("/v1/score?model=strict", json={"instances": [row, row | {"flow": [1]}]}).json()
    assert told["field"] == "flow"
    assert "instances[1]" in told["message"]


def test_a_trained_table_takes_the_file_that_it_was_trained_on(tmp_path, train_bundle):
    """A column of true and false, and a counter that was left out; draws are rows that it takes as well."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({"n": range(60), "flow": random.normal(size=60), "open": random.random(60) > 0.5})
    table.to_csv(tmp_path / "t.csv", index=False)
    bundle = train_bundle(tmp_path / "run", tmp_path / "t.csv", "pcd", steps=2)
    with serving(models={"trained": bundle.servable()}) as client:
        answer = posted(client, "/v1/score", (tmp_path / "t.csv").read_bytes(), "text/csv")
        wanted = bundle.score(table)["energy"].tolist()
        assert [row["energy"] for row in answer.json()["predictions"]] == pytest.approx(wanted, rel=1e-5)
        gap = client.post("/v1/score", json={"instances": [{"flow": None, "open": False}]}).json()
        drawn = client.post("/v1/sample", json={"n": 9}).json()["predictions"]
        assert {type(row["open"]) for row in drawn} == {bool}
        assert client.post("/v1/score", json={"instances": drawn}).status_code == 200
        answer = client.get("/openapi.json").json()["paths"]["/v1/sample"]["post"]["responses"]["200"]
    row = answer["content"]["application/json"]["schema"]["properties"]["predictions"]["items"]["properties"]
    assert row == {"flow": {"type": "number"}, "open": {"type": "boolean"}}
    assert gap["field"] == "flow", json.dumps(gap)
