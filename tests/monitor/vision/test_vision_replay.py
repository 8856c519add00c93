"""Answers recorded from the local server of conftest.py (no real vision model), replayed through the cache.

To record them again, after a change of the prompt or of the sheets:
THALWEG_RECORD=1 python -m pytest tests/monitor/vision/test_vision_replay.py
"""

import json
import os
from pathlib import Path

import pytest

from thalweg.monitor.vision.cache import AnswerCache, Record
from thalweg.monitor.vision.judge import VisionJudge

HERE = Path(__file__).parent


def recorded(name):
    return HERE / f"recorded_from_the_local_server_{name}.json"


@pytest.mark.skipif("THALWEG_RECORD" not in os.environ, reason="records only when asked to")
@pytest.mark.parametrize("name", ["good", "obedient"])
def test_record(name, server, settings, sets, real, judges, tmp_path):
    server.model = judges[name]
    VisionJudge(settings(model=f"tiny-{name}"), tmp_path).compare(sets["one class"], real)
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "answers").iterdir())]
    recorded(name).write_text(json.dumps(records, indent=1) + "\n")


@pytest.mark.parametrize("name", ["good", "obedient"])
def test_recorded_answers_give_the_same_opinion(name, settings, sets, real, tmp_path):
    """No server is there: each question is found by its hash, so a changed prompt or sheet fails here."""
    cache = AnswerCache(tmp_path / "answers")
    records = [Record.model_validate(record) for record in json.loads(recorded(name).read_text())]
    for record in records:
        cache.write(record)
    there = settings(model=f"tiny-{name}", base_url="http://127.0.0.1:9/v1", max_retries=0)
    opinion = VisionJudge(there, tmp_path).compare(sets["one class"], real)
    assert opinion.problem == ""
    assert opinion.questions == len(records)
    assert opinion.images_sent == 0
    assert opinion.reliable == (name == "good")
    assert opinion.verdict == ("alike" if name == "good" else "other")
    assert ("injected text" in opinion.sentence) == (name == "obedient")
