"""What the service writes is JSON, a line a thing."""

import io
import json
import logging

import pytest

from thalweg.serve import logs


@pytest.fixture
def untouched():
    """The loggers as they were, afterwards."""
    kept = [(one, one.handlers, one.propagate, one.level) for one in map(logging.getLogger, logs.OWN)]
    yield
    for one, handlers, propagate, level in kept:
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


def test_warnings_of_the_models_are_json_too(untouched):
    stream = io.StringIO()
    logs.set_up(stream, readable=False)
    logging.getLogger("thalweg").warning("no row can be flagged")
    logging.getLogger("thalweg.serve").info("ready")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"] for line in lines] == ["no row can be flagged", "ready"]
