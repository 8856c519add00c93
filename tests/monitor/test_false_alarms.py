"""False alarms of the sequential test on recorded healthy runs, and on histories bootstrapped from them.

`healthy_runs.json` has the figures of the looks of 40 real short runs, as `benchmarks/monitor_alarms.py` trained and
recorded them.
"""

import importlib.util
import json
from pathlib import Path

import pytest

from thalweg.monitor import sequential

RECORDS = json.loads(Path(__file__).with_name("healthy_runs.json").read_text())
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "monitor_alarms.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("monitor_alarms", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_recorded_run_and_at_most_one_of_a_hundred_histories_raise_an_alarm(script):
    found = script.false_alarms(RECORDS, 500, 60)
    assert (found["runs"], found["runs with an alarm"]) == (40, 0)
    alarms = [number for name, number in found.items() if name.startswith("of these")]
    assert len(alarms) == 2
    assert sum(alarms) <= 10


def test_a_test_that_is_ten_times_as_sharp_raises_many(script, monkeypatch):
    """The mutant: no tolerance, and a fifth of the deviation."""
    monkeypatch.setattr(sequential, "SPREAD", 0.2)
    monkeypatch.setattr(sequential, "TOLERANCES", dict.fromkeys(sequential.TOLERANCES, 0.0))
    found = script.false_alarms(RECORDS, 50, 60)
    assert sum(number for name, number in found.items() if name.startswith("of these")) > 20
