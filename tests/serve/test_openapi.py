"""R18: schemathesis finds no answer that the description of the service does not allow, and no wrong request taken."""

import os

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.checks import CHECKS, load_all_checks

from thalweg.serve.safety.tokens import hashed

from .live import listening
from .service import npy, picture, serving

TOKEN = "correct-horse-battery-staple"
EXAMPLES = int(os.environ.get("THALWEG_EXAMPLES", "1000"))  # of the long form, of each kind, an operation
QUICK, LONG = 6, pytest.param(EXAMPLES, marks=pytest.mark.slow)
# A tensor's shape says how many values follow, which JSON Schema cannot; so what it allows may be refused there.
SHAPES = "/infer"
TAKEN = ["2xx", "422", "429", "503", "504"]  # 422: the form is right, and the model cannot take what it says
REFUSED = ["400", "401", "403", "404", "405", "413", "415", "422", "501"]

load_all_checks()


def bodies(model):
    """Good bodies of the content types that are no JSON."""
    import numpy as np

    pictures = {"image/png": ("PNG",), "image/jpeg": ("JPEG",)}
    for media, format in pictures.items():
        schemathesis.openapi.media_type(media, st.just(picture((4, 4), *format)))
    array = {"numbers": np.ones((2, 2)), "pictures": np.ones((1, 1, 4, 4))}.get(model)
    if array is not None:
        schemathesis.openapi.media_type("application/x-npy", st.just(npy(array)))
    rows = {"table": b"age,city\n1,rome\n", "words": b"x\nab\n"}
    schemathesis.openapi.media_type("text/csv", st.just(rows.get(model, b"")))


KINDS = ("numbers", "table", "pictures", "words")
# Of the short form the routes of one model are enough for a look at tokens.
CASES = [(kind, None, QUICK) for kind in KINDS] + [("numbers", TOKEN, QUICK)]
CASES += [pytest.param(kind, token, *LONG.values, marks=LONG.marks) for kind in KINDS for token in (None, TOKEN)]


def test_a_class_may_be_named_as_the_model_names_it():
    with serving("pictures", "words") as client:
        body = client.get("/openapi.json").json()["paths"]["/v1/sample"]["post"]["requestBody"]
    labels = [one["properties"]["label"]["anyOf"] for one in body["content"]["application/json"]["schema"]["anyOf"]]
    of_classes = [{"type": "integer", "minimum": 0, "maximum": 1}, {"enum": ["dark", "light", "0", "1"]}]
    assert labels == [[*of_classes, {"type": "null"}], [{"type": "null"}]]


@pytest.mark.parametrize(("model", "token", "examples"), CASES)
def test_every_answer_is_as_described(model, token, examples):
    bodies(model)
    with listening(model, tokens=(hashed(token),) if token else ()) as port:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        statuses = {"positive_data_acceptance": TAKEN, "negative_data_rejection": REFUSED}
        checks = {name: {"expected-statuses": codes} for name, codes in statuses.items()}
        config = schemathesis.Config.from_dict({"checks": checks})
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json", headers=headers, config=config)
        for operation in (found.ok() for found in schema.get_all_operations()):
            check(operation, headers, examples)


def check(operation, headers, examples):
    """So many requests that are allowed, and as many that are not."""
    excluded = [CHECKS.get_one("positive_data_acceptance")] if operation.path.endswith(SHAPES) else []
    if headers:  # a wrong request is then one without a token, which is put back
        excluded.append(CHECKS.get_one("negative_data_rejection"))

    def ask(case):
        answer = case.call(headers=headers)
        case.validate_response(answer, excluded_checks=excluded, headers=headers)

    for mode in schemathesis.GenerationMode:
        test = hypothesis.given(case=operation.as_strategy(generation_mode=mode))(ask)
        test = hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )(test)
        try:
            test()
        except hypothesis.errors.Unsatisfiable:  # a route without anything that could be wrong
            assert mode.is_negative
            assert not operation.body
