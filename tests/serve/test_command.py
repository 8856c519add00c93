"""`thalweg serve`: what is wrong is one line, before anything listens."""

import importlib.util
import socket

import pytest

from thalweg.serve import loading

from .fake_models import MODELS


@pytest.fixture
def models(monkeypatch, tmp_path):
    """Folders that are served as fakes."""
    monkeypatch.setattr(loading, "load_models", lambda runs, **how: (dict.fromkeys(runs, MODELS["numbers"]), {}))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()


def refused(call, *words, about):
    code, _, err = call("serve", *words)
    assert code == 2
    assert len(err) == 1, err
    assert about in err[0]
    return err[0]


def test_a_folder_that_is_no_run(call, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(call, "empty", about="empty")


def test_others_than_loopback_without_a_token(call, models, monkeypatch):
    monkeypatch.delenv("THALWEG_TOKEN", raising=False)
    assert "--insecure" in refused(call, "one", "--host", "0.0.0.0", about="--host=")


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (["one", "one"], "--name"),
        (["one", "two", "--name", "a"], "--name"),
        (["one", "--name", "a/b"], "--name"),
        (["one", "--deadline", "-1"], "deadline"),
        (["one", "--token-file", "absent"], "absent"),
        (["one", "--port", "70000"], "--port"),
    ],
)
def test_options_that_cannot_be(call, models, words, about):
    refused(call, *words, about=about)


def test_a_port_that_is_taken(call, models):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(call, "one", "--port", taken.getsockname()[1], about="--port=")


def test_the_extra_is_named_where_it_is_missing(call, models, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastapi" else real(name))
    refused(call, "one", about="thalweg[serve]")


def test_versions_change_with_the_files(tmp_path):
    assert loading.version_of(tmp_path) == "1"
    (tmp_path / "manifest.json").write_text("{}")
    first = loading.version_of(tmp_path)
    (tmp_path / "manifest.json").write_text("{ }")
    assert len(first) == 12
    assert loading.version_of(tmp_path) != first
