"""`thalweg evaluate RUN --judge`, and the report's section."""

import json
from types import SimpleNamespace

import pytest

from thalweg import api
from thalweg.cli import evaluate
from thalweg.core import store
from thalweg.core.errors import UserError
from thalweg.evaluate.judged_section import judged_section
from thalweg.evaluate.suite import Evaluation
from thalweg.monitor.vision.controls import ControlResult
from thalweg.monitor.vision.opinion import Opinion

KEY = "sk-very-secret-0123456789"


@pytest.fixture
def run(copy, monkeypatch):
    """A copy of a small run of digits; the command's figures are left out but where a test wants them."""
    whole = evaluate.evaluate_run
    monkeypatch.setattr(evaluate, "evaluate_run", lambda *_, **__: {})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("thalweg.api.JUDGED", 40)
    return copy, whole


def test_the_vision_judge(call, run, server, monkeypatch, tmp_path):
    """36 tiles, which the tiny model cannot cut out, so it always says the same, and is not listened to."""
    folder, _ = run
    server.model = lambda png: {}
    monkeypatch.setenv("TINY_KEY", KEY)
    words = ("--judge", "vision", "--model", "tiny", "--base-url", f"{server.url}/v1", "--key-variable", "TINY_KEY")
    code, out, err = call("evaluate", folder, *words)
    assert (code, out) == (2, None)
    assert "--send-images" in err[-1]
    assert not server.seen

    code, out, err = call("evaluate", folder, *words, "--send-images", "--json", "--price", "0", "0", "--max-cost", "0")
    assert code == 0, err
    assert any("is not listened to: it failed these controls: real, noise," in line for line in err), err
    assert "requests with a contact sheet, to 127.0.0.1: 28; $0.0000 spent in all, by the prices given" in err
    opinion = json.loads((folder / "opinion.json").read_text())
    assert out["opinion"] == opinion
    assert opinion["step"] == 25
    assert (folder / "opinion.png").read_bytes().startswith(b"\x89PNG")
    assert not any(KEY in path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def no_figures(monkeypatch):
    """An evaluation that measures nothing, so that the report is quick."""
    about = {"kind": "image", "shape": [1, 8, 8], "num_samples": 20, "num_held_out": 20, "num_train": 20, "seed": 0}
    about |= {"digit_network_note": "", "versions": {}}
    found = Evaluation({"about": about, "quality": {"samples": {}, "real": {}}}, {})
    monkeypatch.setattr("thalweg.evaluate.suite.evaluate_bundle", lambda *_, **__: found)
    monkeypatch.setattr("thalweg.apps.landscape.picture_files.of_report", lambda *_, **__: {})


def test_without_a_key_the_statistical_judge_answers_and_the_report_shows_it(call, run, monkeypatch, no_figures):
    folder, whole = run
    monkeypatch.setattr(evaluate, "evaluate_run", whole)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    code, _, err = call("evaluate", folder, "--judge", "vision", "--model", "m", "--send-images")
    assert code == 0, err
    assert any("ANTHROPIC_API_KEY holds no key, so the statistical judge answers" in line for line in err)
    sentence = next(line for line in err if line.startswith("Statistical judge (figures and a test, no vision model)"))
    page = (folder / "report.html").read_text()
    assert f"<h2>Judged</h2><p><b>{sentence}</b></p>" in page
    assert "Panel A: made by the model" in page
    assert not (folder / "judge").exists(), "nothing was asked"

    opinion = store.read_json(folder / "opinion.json")
    store.write_json(folder / "opinion.json", opinion | {"step": 24})
    assert call("evaluate", folder)[0] == 0
    assert "<h2>Judged</h2>" not in (folder / "report.html").read_text(), "it is of another training"


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        (["--judge", "vision"], "model"),
        (["--send-images"], "--send-images"),
        (["--judge", "statistical", "--max-cost", "2"], "--max-cost"),
        (["--judge", "vision", "--model", "m", "--base-url", "ftp://x"], "base_url"),
        (["--judge", "vision", "--model", "m", "--client", "opneai"], "client"),
    ],
)
def test_what_is_refused_in_one_line(words, argument, call, run):
    code, out, err = call("evaluate", run[0], *words)
    assert (code, out) == (2, None)
    assert err[-1].startswith(f"thalweg: {argument}")


def test_texts_are_refused(tmp_path):
    with pytest.raises(UserError, match="images or rows"):
        api.judge_run(None, tmp_path, data=SimpleNamespace(kind="text"))


def opinion(**more):
    control = ControlResult(kind="noise", meaning="noise beside data", passed=True, reasons=["<b>speckle</b>"])
    given = {"judge": "vision", "reliable": True, "sentence": "Fine <script>.", "controls": [control], "cost": 0.25}
    given |= {"model": "tiny & co", "host": "127.0.0.1", "prompt_version": "7", "temperature": 0.5, "flip_rate": 0.25}
    given |= {"reasons": ["<img src=x>"], "preferred": 0.5, "attributes": {"artefacts": 0.75}, "chance_to_pass": 4e-9}
    return Opinion(**(given | more)).model_dump(mode="json")


def test_the_section_says_all_and_escapes_what_a_model_wrote():
    text = judged_section(opinion(), {"judged": b"\x89PNG"})
    for part in ("1 of 1 controls passed", "4e-09", "25% of sheets", "50%", "75%", "version 7, 0.5", "$0.2500"):
        assert part in text, part
    assert "tiny &amp; co at 127.0.0.1" in text
    assert not any(raw in text for raw in ("<script>", "<img src=x>", "<b>speckle</b>"))
    assert "Nothing should be concluded" not in text


def test_the_section_of_a_judge_that_fails():
    text = judged_section(opinion(reliable=False, verdict="good"), {})
    assert "Nothing should be concluded" in text
    assert "<td>verdict</td><td class=own>none</td>" in text
    assert judged_section(None, {}) == ""
