"""A table of normal rows, a detector fitted on its file, and the command that a user would type."""

import io
import logging
import sys
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pandas as pd
import pytest


def rows(num=60, seed=0):
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {"flow": random.normal(size=num), "heat": random.exponential(size=num), "site": random.choice([*"uvw"], num)}
    )


@pytest.fixture(scope="session")
def normal_rows():
    """Rows of two columns of numbers and one of three categories, so many, by a seed."""
    return rows


@pytest.fixture(scope="session")
def thalweg_command():
    """Call the command line's own entry: (exit code, standard output, lines of standard error)."""
    return call


def call(*words):
    from thalweg.cli import main as cli

    out, err = io.StringIO(), io.StringIO()
    root, argv = logging.getLogger(), sys.argv
    handlers, root.handlers, sys.argv = root.handlers, [], ["thalweg", *map(str, words)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        root.handlers, sys.argv = handlers, argv
    return code, out.getvalue(), err.getvalue().splitlines()


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of a detector of normal rows, fitted through the command line."""
    folder = tmp_path_factory.mktemp("detector")
    rows().to_csv(folder / "normal.csv", index=False)
    code, _, err = call("detect", "fit", folder / "normal.csv", "-o", folder / "run")
    assert code == 0, err
    return folder / "run"
