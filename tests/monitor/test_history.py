"""What the monitor has written is read as it is: while it grows, after a kill, after a resume, of a later version."""

import json

import pytest

from thalweg.core.json_lines import JsonLines
from thalweg.monitor.history import History

from .run_folders import write_run


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", steps=800, collapse=500)


def steps(history):
    return [look.step for look in history.looks()]


def test_a_look_has_what_was_written(folder):
    looks = History(folder).looks()
    assert [look.step for look in looks] == [100, 200, 300, 400, 500, 600, 700, 800]
    assert [look.alarm for look in looks] == [None] * 4 + ["variety"] * 2 + [None] * 2
    assert looks[4].action
    assert not looks[5].action
    assert looks[4].reference["vendi"] == (1.0, 0.03)
    assert looks[4].figures["vendi"] < 0.4 < looks[3].figures["vendi"]


def test_a_suspicion_is_a_word(folder):
    """Mutant: an alarm only beyond 1, not at 1, where the monitor's alarm is."""
    looks = History(folder).looks()
    words = [[look.mark(name) for name in ("vendi", "coverage", "duplicates")] for look in looks[3:7]]
    lost = ["alarm", "suspicious", ""]
    assert words == [["calm", "calm", ""], lost, lost, ["suspicious", "calm", ""]]


def test_the_pictures_are_in_the_order_of_their_steps(folder):
    (folder / "monitor" / "step-100000000.png").write_bytes(b"")  # nine digits: after the others as a number alone
    (folder / "monitor" / "notes.png").write_bytes(b"")
    pictures = History(folder).pictures()
    assert [*pictures] == [100, 200, 300, 400, 500, 600, 700, 800, 100_000_000]
    assert pictures[200].name == "step-00000200.png"


def test_no_files_are_no_looks(tmp_path):
    history = History(tmp_path)
    assert (history.looks(), history.pictures()) == ([], {})
    (tmp_path / "monitor.jsonl").mkdir()
    (tmp_path / "monitor").write_text("a file")
    assert (history.looks(), history.pictures()) == ([], {})


@pytest.mark.parametrize(
    "line",
    [
        "[1, 2]",
        "nonsense",
        '{"figures": {}}',
        '{"step": "900"}',
        '{"step": true}',
        '{"step": 9.5}',
        "[" * 100_000,
        "\x00\xff",
    ],
)
def test_a_line_that_is_no_look_is_left_out(folder, line):
    with (folder / "monitor.jsonl").open("a", encoding="latin-1") as file:
        file.write(line + "\n" + json.dumps({"step": 900}) + "\n")
    assert steps(History(folder)) == [100, 200, 300, 400, 500, 600, 700, 800, 900]


def test_what_does_not_fit_is_left_out_of_a_look(tmp_path):
    """Keys of a later version, and figures that are not finite."""
    row = {
        "step": 1,
        "figures": {"vendi": float("nan"), "density": 1, "name": "x", "coverage": None, "yes": True},
        "reference": {"density": [1, 0.5], "vendi": [1], "coverage": "x"},
        "suspicion": [1],
        "opinion": "good",
        "later": {"deep": []},
    }
    (tmp_path / "monitor.jsonl").write_text(json.dumps(row))
    (look,) = History(tmp_path).looks()
    assert look.figures == {"density": 1.0}
    assert look.reference == {"density": (1.0, 0.5)}
    assert (look.suspicion, look.alarm, look.sentence, look.action, look.opinion) == ({}, None, "", None, None)


def test_a_line_counts_once_it_is_whole(tmp_path):
    """Mutants: the last line read as far as it is there; the rows before it parsed again and doubled."""
    path = tmp_path / "monitor.jsonl"
    lines = JsonLines(path)
    whole = '{"step": 10, "x": "é"}\n{"step": 20, "x": 1.5}'.encode()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        wanted = [10] * (end >= whole.index(b"}") + 1) + [20] * (end == len(whole))
        assert [row["step"] for row in lines.read()] == wanted
    with path.open("ab") as file:
        file.write(b'\n{"step": 30')
    assert [row["step"] for row in lines.read()] == [10, 20]
    assert lines.read()[0]["x"] == "é"


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(folder):
    """In the same file, or by a file that replaces it."""
    history, path = History(folder), folder / "monitor.jsonl"
    assert steps(history)[-1] == 800
    with path.open("a") as file:
        file.write('{"step": 600, "sentence": "again"}\n')
    assert steps(history) == [100, 200, 300, 400, 500, 600]
    assert history.looks()[-1].sentence == "again"
    new = folder / "new"
    new.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 90)))
    new.replace(path)
    assert steps(history) == [*range(1, 90)]
    path.write_text('{"step": 7}\n')  # cut in place
    assert steps(history) == [7]
    path.unlink()
    assert steps(history) == []


def test_what_was_read_is_not_read_again(tmp_path, monkeypatch):
    """Mutant: the whole file parsed at each frame, by which a long run would take a core."""
    path, parsed = tmp_path / "x.jsonl", []
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1000)))
    lines = JsonLines(path)
    assert len(lines.read()) == 1000
    real = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or real(text))
    with path.open("a") as file:
        file.write('{"step": 1000}\n')
    assert len(lines.read()) == 1001
    assert len([text for text in parsed if text]) == 1
