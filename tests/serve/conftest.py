"""Processes of the tests of this folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from .forked import OPENED

PROCESS = Path(__file__).with_name("process.py")


@pytest.fixture(scope="module")
def parent():
    """What forks services: it has imported what they need."""
    command = [sys.executable, str(PROCESS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture(autouse=True)
def closed():
    """Connections are."""
    yield
    while OPENED:
        OPENED.pop().close()
