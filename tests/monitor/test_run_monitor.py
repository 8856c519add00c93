"""The monitor of a run beside made-up figures: rows and pictures, a second opinion, what is dropped when it goes on."""

from types import SimpleNamespace

import pytest
import torch

from thalweg.core.json_lines import JsonLines
from thalweg.core.rng import generator
from thalweg.monitor import run_monitor as module
from thalweg.monitor.run_monitor import LookSamples, RunMonitor

REFERENCE = {"coverage": (0.9, 0.03), "nearest_train": (1.0, 0.03)}
GOOD = {"coverage": 0.8, "nearest_train": 1.0}
LOST = {"coverage": 0.1, "nearest_train": 1.0}


class Figures:
    """In place of `Diversity`: the figures of the look that is due."""

    def __init__(self, rows):
        self.rows = list(rows)

    def reference(self, n):
        return REFERENCE

    def figures(self, x, *, lineages=None):
        return dict(self.rows.pop(0))

    def classes(self, x):
        return (x[:, 0, 0, 0] * 4).long()


def images(state, precision, share):
    draws = generator(0, "images", state.step)
    return LookSamples(torch.rand(max(1, round(20 * share)), 1, 8, 8, generator=draws))


def watched(rows, folder, **given):
    """A monitor after looks with these figures: (monitor, memory, verdicts as (alarm, calm, sentence))."""
    monitor = RunMonitor(lambda: Figures(rows), images, num_samples=20, least=10, folder=folder, **given)
    monitor.begin(0, "fp32")
    memory, found = None, []
    for k in range(len(rows)):
        alarm, calm, sentence, after = monitor.look(SimpleNamespace(step=10 * (k + 1), monitor=memory))
        found.append((alarm, calm, sentence))
        memory = monitor.settle(after, "set objective.reinit from 0 to 0.1" if alarm else None)
    return monitor, memory, found


def test_each_look_is_a_row_and_a_picture_and_the_alarm_says_what_was_before(tmp_path):
    _, _, found = watched([GOOD] * 4 + [LOST] * 2, tmp_path)
    assert [alarm for alarm, _, _ in found] == [None] * 5 + ["variety"]
    said = found[-1][2]
    for part in ("the samples have lost variety", "coverage 0.10", "0.80 at its best", "0.90 for held-out data"):
        assert part in said
    assert found[4][2].startswith("suspicious: coverage 0.10")
    rows = JsonLines(tmp_path / "monitor.jsonl").read()
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert rows[-1]["action"] == "set objective.reinit from 0 to 0.1"
    assert rows[-1]["figures"] == LOST
    assert rows[-1]["reference"] == {name: list(pair) for name, pair in REFERENCE.items()}
    assert len(list((tmp_path / "monitor").glob("step-*.png"))) == 6


@pytest.mark.parametrize("overrules", [True, False])
def test_a_second_opinion_is_asked_about_alarms_alone_and_may_hold_one_back(overrules, tmp_path):
    asked = []

    def opinion(x, step):
        asked.append((len(x), step))
        return {"sentence": "the model finds them varied", "overrules": overrules}

    _, memory, found = watched([GOOD] * 4 + [LOST] * 3, tmp_path, opinion=opinion)
    assert asked == [(20, 60)]
    assert found[5][0] == (None if overrules else "variety")
    row = JsonLines(tmp_path / "monitor.jsonl").read()[5]
    assert row["opinion"]["overrules"] is overrules
    assert ("not acted upon: the model finds them varied" in row["sentence"]) is overrules
    assert memory["grace"] > 0


def test_of_chains_the_share_that_changed_its_class_is_told(tmp_path):
    def chains(state, precision, share):
        x = torch.zeros(20, 1, 8, 8)
        x[: state.step // 10, 0, 0, 0] = 0.9  # one more at each look
        return LookSamples(x, torch.arange(20))

    monitor = RunMonitor(lambda: Figures([GOOD] * 3), chains, num_samples=20, least=10, folder=tmp_path)
    monitor.begin(0, "fp32")
    memory = None
    for step in (10, 20, 30):
        *_, after = monitor.look(SimpleNamespace(step=step, monitor=memory))
        memory = monitor.settle(after, "set objective.reinit from 0 to 0.1" if step == 20 else None)
    rates = [row["figures"].get("switch_rate") for row in JsonLines(tmp_path / "monitor.jsonl").read()]
    assert rates == [None, 0.05, 0.05]


def test_rows_and_pictures_after_the_step_it_goes_on_at_are_dropped(tmp_path):
    monitor, _, _ = watched([GOOD] * 5, tmp_path)
    with (tmp_path / "monitor.jsonl").open("a") as file:
        file.write('{"step": 60, "fig')
    monitor.begin(30, "fp32")
    assert [row["step"] for row in JsonLines(tmp_path / "monitor.jsonl").read()] == [10, 20, 30]
    names = sorted(path.name for path in (tmp_path / "monitor").iterdir())
    assert names == ["step-00000010.png", "step-00000020.png", "step-00000030.png"]


def test_pictures_are_thinned_and_the_first_and_the_newest_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_PICTURES", 6)
    watched([GOOD] * 30, tmp_path)
    steps = sorted(int(path.stem[5:]) for path in (tmp_path / "monitor").iterdir())
    assert len(steps) <= 6
    assert (steps[0], steps[-1]) == (10, 300)


def test_a_full_disk_ends_no_run(tmp_path, monkeypatch, caplog):
    monitor, memory, _ = watched([GOOD] * 2, tmp_path)
    monitor.diversity.rows = [GOOD] * 2
    (tmp_path / "monitor.jsonl").unlink()
    (tmp_path / "monitor.jsonl").mkdir()  # what is there cannot be appended to
    for step in (30, 40):
        *_, after = monitor.look(SimpleNamespace(step=step, monitor=memory))
        memory = monitor.settle(after, None)
    assert caplog.text.count("not written any more") == 1


def test_without_a_folder_nothing_is_written_and_the_verdicts_are_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [GOOD] * 4 + [LOST] * 2
    (tmp_path / "x").mkdir()
    assert watched(rows, None)[2] == watched(rows, tmp_path / "x")[2]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
