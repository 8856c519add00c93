"""What the service writes is JSON, a line a thing."""

import io
import json
import logging
import warnings

import pytest

from thalweg.serve import logs


@pytest.fixture
def untouched():
    """The loggers as they were, afterwards."""
    kept = [(one, one.handlers, one.propagate, one.level) for one in map(logging.getLogger, logs.OWN)]
    last = logging.lastResort
    yield
    logging.captureWarnings(False)
    logging.lastResort = last
    for one, handlers, propagate, level in kept:
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


def test_warnings_of_python_and_of_other_packages_are_json_too(untouched):
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.set_up(stream, readable=False)
        warnings.warn("this is odd", stacklevel=1)
    other = logging.getLogger("another.package")
    other.parent, parent = None, other.parent  # in a service the root has no handler, here it has those of pytest
    other.warning("so is this")
    other.parent = parent
    lines = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert "UserWarning: this is odd" in lines[0]
    assert lines[1:] == ["so is this"]


def test_warnings_of_the_models_are_json_too(untouched):
    stream = io.StringIO()
    logs.set_up(stream, readable=False)
    logging.getLogger("thalweg").warning("no row can be flagged")
    logging.getLogger("thalweg.serve").info("ready")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"] for line in lines] == ["no row can be flagged", "ready"]
