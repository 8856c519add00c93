"""A command that wants a trained energy says what else it was given, and which command reads that."""

import json

import pytest

from thalweg.apps.rerank import EnergyReranker
from thalweg.commands.trained import trained
from thalweg.core.errors import UserError
from thalweg.core.store import seal


def test_a_bundle_is_given_back(chains):
    assert trained(chains.path).shape == (2,)


def test_a_reranker_is_no_detector(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"app": "rerank"}))
    seal(tmp_path, ["config.json"])
    monkeypatch.setattr(EnergyReranker, "read", lambda folder, config: EnergyReranker())
    with pytest.raises(UserError, match="a re-ranker, no trained energy; rank with `thalweg rerank`") as told:
        trained(tmp_path)
    assert "\n" not in str(told.value)
