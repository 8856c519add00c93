"""The section of a report on what the monitor saw."""

import base64
import io
import random
import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from thalweg import api
from thalweg.apps.landscape import picture_files
from thalweg.bundle import inputs
from thalweg.evaluate import suite
from thalweg.evaluate.history_section import chosen, history_curves, history_section
from thalweg.evaluate.suite import Evaluation
from thalweg.monitor.history import History

from ..monitor.run_folders import look, write_run


def seen(folder):
    history = History(folder)
    return [each._asdict() for each in history.looks()], history.pictures()


@pytest.fixture
def collapsed(tmp_path):
    return write_run(tmp_path / "run", steps=2000, total=2000, collapse=500)


def text_of(page):
    return re.sub(r"<[^>]+>", " ", re.sub(r"data:image/png;base64,[^\"]+", "", page))


def test_a_run_without_a_monitor_has_no_section(tmp_path):
    assert history_section(*seen(tmp_path)) == ""


def test_the_section_says_when_and_what(collapsed):
    page = history_section(*seen(collapsed))
    text = text_of(page)
    assert "20 times, from step 100 to step 2,000" in text
    assert "2 of the looks raised an alarm." in text
    assert text.count("the samples have become alike") == 2
    assert text.count("went back to step 200") == 1
    captions = re.findall(r"<figcaption>(Step [^<]+)</figcaption>", page)
    assert captions[0] == "Step 100"
    assert captions[-1] == "Step 2,000"
    assert {"Step 500: alarm, variety", "Step 600: alarm, variety"} < {*captions}
    assert len(captions) == 6


def test_a_healthy_run_has_its_last_look_and_no_alarm(tmp_path):
    text = text_of(history_section(*seen(write_run(tmp_path / "run", steps=300))))
    assert "No look raised an alarm." in text
    assert "nothing worse than" in text
    one = text_of(history_section(*seen(write_run(tmp_path / "one", steps=100))))
    assert "once, at step 100" in one


def test_an_alarm_that_was_overruled_is_in_the_table(tmp_path):
    looks, pictures = seen(write_run(tmp_path / "run", steps=300))
    looks[1] |= {"sentence": "coverage 0.5; not acted upon: the samples are good", "opinion": {"reliable": True}}
    text = text_of(history_section(looks, pictures))
    assert "not acted upon" in text
    assert "No look raised an alarm." in text


def test_the_curves_have_the_band_and_the_marks(collapsed):
    """Mutants: the band of one deviation; a mark at each look; the band of another figure."""
    looks, _ = seen(collapsed)
    figure = history_curves(looks)
    assert [ax.get_ylabel() for ax in figure.axes] == ["vendi", "coverage", "duplicates", "nearest train"]
    vendi = figure.axes[0]
    (band,) = vendi.collections
    points = band.get_paths()[0].vertices[:, 1]
    assert (points.min(), points.max()) == pytest.approx((0.94, 1.06))
    curve, *marks = vendi.get_lines()
    assert len(curve.get_xdata()) == 20
    assert sorted((line.get_xdata()[0], line.get_color()) for line in marks) == [
        (500, "#b3261e"),
        (500, "#c2571a"),
        (600, "#b3261e"),
    ]


def test_looks_that_lack_figures_are_drawn_as_they_are(tmp_path):
    """A look that failed has no figures; one figure came later; a single look has a band that can be seen."""
    rows = [look(step, random.Random(0), None) for step in (100, 200)]
    del rows[0]["figures"]["vendi"]
    figure = history_curves([{**rows[0], "figures": {}, "reference": {}}, *rows])
    lines = {ax.get_ylabel(): ax.get_lines()[0] for ax in figure.axes}
    assert {name: len(line.get_xdata()) for name, line in lines.items()}["vendi"] == 1
    (band,) = history_curves(rows[:1]).axes[0].collections
    assert len(band.get_paths()[0].vertices) > 3
    assert history_curves([{**rows[0], "figures": {}}]) is None


def test_texts_of_a_file_are_no_html(collapsed):
    looks, pictures = seen(collapsed)
    looks[4] |= {"sentence": "<b>&", "alarm": "<i>", "action": "<script>"}
    page = history_section(looks, pictures)
    assert "&lt;b&gt;&amp;" in page
    assert "&lt;script&gt;" in page
    assert not re.search("<i>|<script", page)


def test_many_verdicts_are_cut(collapsed):
    looks, _ = seen(collapsed)
    alarms = [{**looks[4], "step": step} for step in range(1, 46)]
    page = history_section(alarms, {})
    assert page.count("<tr>") == 41
    assert "5 later verdicts are in monitor.jsonl" in page


@pytest.mark.parametrize(
    ("number", "alarms", "expected"),
    [
        (0, [], []),
        (1, [], [0]),
        (6, [3], [0, 1, 2, 3, 4, 5]),
        (100, [], [0, 20, 40, 59, 79, 99]),
        (100, [50, 51], [0, 33, 50, 51, 67, 99]),
        (100, [0, 99], [0, 20, 40, 59, 79, 99]),
        (100, [10, 20, 30, 40, 50, 60, 70, 80], [0, 10, 30, 50, 70, 99]),
    ],
)
def test_the_chosen_looks_are_the_ends_the_alarms_and_some_between(number, alarms, expected):
    assert chosen(range(number), alarms) == expected


def test_the_report_of_a_run_has_the_section(tmp_path, monkeypatch):
    """api.evaluate_run reads the monitor's files; without them the page is as before."""
    about = {"kind": "image", "shape": [1], "num_samples": 1, "num_held_out": 1, "num_train": 1, "seed": 0}
    about |= {"digit_network": {}, "digit_network_note": "", "versions": {}}
    figures = {"about": about, "quality": {"samples": {}, "real": {}}, "likelihood": None}
    monkeypatch.setattr(suite, "evaluate_bundle", lambda *_, **__: Evaluation(figures, {}))
    monkeypatch.setattr(picture_files, "of_report", lambda *_, **__: {})
    monkeypatch.setattr(inputs, "in_float32", lambda bundle, *parts: (bundle, None, parts))
    bundle = SimpleNamespace(config={"command": "thalweg train", "run": {"data": {"name": "mnist"}}})
    rows = torch.zeros(50, 1)
    data = SimpleNamespace(
        train=rows, held_out=rows, held_out_labels=None, alphabet=None, source="digits", kind="image", shape=(1, 8, 8)
    )
    empty, seen = tmp_path / "empty", write_run(tmp_path / "run", collapse=300)
    empty.mkdir()
    for folder, number in ((empty, 0), (seen, 1)):
        api.evaluate_run(bundle, folder, num_samples=20, seed=0, data=data)
        page = (folder / "report.html").read_text("utf-8")
        assert page.count("<h2>History</h2>") == number
        assert page.count('alt="samples at step') == 4 * number


def test_a_picture_is_the_file_itself(collapsed):
    looks, pictures = seen(collapsed)
    page = history_section(looks, {100: pictures[100]})
    found = re.search('alt="samples at step 100" src="data:image/png;base64,([^"]+)"', page)
    data = base64.b64decode(found[1])
    assert data == pictures[100].read_bytes()
    assert Image.open(io.BytesIO(data)).size == (304, 244)
