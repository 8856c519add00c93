"""`thalweg watch`: how a run stands, what is on the screen, and that a run is not touched."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from PIL import Image
from rich.cells import cell_len
from rich.console import Console

from thalweg.cli.terminal import picture
from thalweg.cli.terminal.curve import curve
from thalweg.cli.terminal.panel import duration, number
from thalweg.cli.terminal.screen import frame
from thalweg.cli.watch import as_plain
from thalweg.run import status as module
from thalweg.run.run_folder import RunFolder
from thalweg.run.status import Follower, is_locked
from thalweg.training.guard import LIMITS

from ..monitor.run_folders import write_run

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def aged(folder, seconds=3600.0):
    """A run whose files are that old."""
    then = time.time() - seconds
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))
    return folder


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", steps=800, collapse=500, rollbacks=1)


def state(folder):
    return Follower(folder).status().state


def shown(folders, width, height=None, **options):
    """The lines of a frame, without colours."""
    console = Console(width=width, height=height or 25, record=True, file=io.StringIO(), **options)
    console.print(frame([Follower(folder).status() for folder in folders], console, height))
    return console.export_text().splitlines()


def test_the_limits_are_those_of_the_guard():
    assert {limit.signal: limit.setting for limit in LIMITS} == module.BOUNDS


def test_a_fresh_run_is_running_and_an_old_one_has_stopped(run):
    """Mutant: a run without manifest.json is running for ever."""
    assert state(run) == "running"
    assert state(aged(run)) == "stopped"
    (run / "metrics.jsonl").touch()
    assert state(run) == "running"


def test_a_run_with_a_manifest_is_finished(run):
    (run / "manifest.json").write_text("{}")
    assert state(run) == state(aged(run)) == "finished"


def test_a_locked_run_is_running_however_long_a_step_takes(run):
    """Mutants: the age alone; a lock that is taken to look, which would turn away a run that goes on."""
    if is_locked(run) is None:
        pytest.skip("the system lists no locks")
    aged(run)
    assert (is_locked(run), state(run)) == (False, "stopped")
    lock = RunFolder(run, folders=(), files=())
    follower = Follower(run)
    lock.lock()
    aged(run)
    assert (is_locked(run), follower.status().state) == (True, "running")
    lock.unlock()
    assert (is_locked(run), follower.status().state) == (False, "stopped")
    lock.lock()  # while it is followed
    lock.unlock()


def test_where_no_locks_are_listed_age_decides(run, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "LOCKS", tmp_path / "none")
    assert is_locked(run) is None
    assert state(aged(run, 30)) == "running"  # a run may be silent for as long, between two previews
    assert state(aged(run, 90)) == "stopped"


@pytest.mark.parametrize(
    ("last", "guard", "expected"),
    [
        ({"gap": 1e5}, {}, "diverged"),
        ({"gap": -1e5}, {}, "diverged"),
        ({"spread": 0.001}, {}, "diverged"),
        ({"loss": float("nan")}, {}, "diverged"),
        ({"loss": float("inf")}, {"policy": "warn"}, "diverged"),
        ({"gap": 99.0, "spread": 0.03}, {}, "stopped"),
        ({"gap": 1e5}, {"max_gap": None}, "stopped"),
        ({"gap": 1e5}, {"policy": "warn"}, "stopped"),
    ],
)
def test_last_figures_beyond_the_limits_are_a_divergence(tmp_path, last, guard, expected):
    folder = write_run(tmp_path / "run", last=last)
    config = json.loads((folder / "config.json").read_text())
    config["run"]["train"]["guard"].update(guard)
    (folder / "config.json").write_text(json.dumps(config))
    assert state(folder) == "running"
    assert state(aged(folder)) == expected


def test_a_run_that_the_monitor_ended_has_diverged(run):
    row = {"step": 800, "alarm": "variety", "sentence": "the samples are alike", "action": "stopped"}
    with (run / "monitor.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    aged(run)
    assert state(run) == "diverged"
    assert "by the monitor" in "\n".join(shown([run], 100))


def test_a_run_is_followed_from_its_first_file_to_its_removal(tmp_path):
    """A run begins, logs, is killed, goes on, ends, and is gone."""
    done = write_run(tmp_path / "done", steps=300)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes((done / "config.json").read_bytes())
    follower, seen = Follower(folder), []

    def look():
        found = follower.status()
        seen.append((found.state, found.step, found.total, len(found.looks)))

    look()
    lines = (done / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "plan.json").write_bytes((done / "plan.json").read_bytes())
    (folder / "metrics.jsonl").write_text("".join(lines[:20]) + lines[20][:7])
    look()
    aged(folder)
    look()
    (folder / "metrics.jsonl").write_text("".join(lines[:10]))  # from the checkpoint of step 100
    look()
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "monitor.jsonl").write_bytes((done / "monitor.jsonl").read_bytes())
    (folder / "manifest.json").write_text("{}")
    look()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    look()
    assert [each[:2] for each in seen] == [
        ("running", 0),
        ("running", 200),
        ("stopped", 200),
        ("running", 100),
        ("finished", 300),
        ("gone", 0),
    ]
    assert seen[4][2:] == (1000, 3)


def test_speed_and_time_left_are_those_of_the_log(run):
    """0.05 s a step."""
    found = Follower(run).status()
    assert found.speed == pytest.approx(20)
    assert found.left == pytest.approx(200 / 20)
    assert (found.rollbacks, found.rolled_back, found.saved) == (1, 300, 800)


def test_the_newest_picture_is_shown(run):
    """Mutant: preview.png, though the monitor has drawn a later one."""
    (run / "preview.png").write_bytes((run / "monitor" / "step-00000100.png").read_bytes())
    aged(run, 100)
    newest = run / "monitor" / "step-00000800.png"
    newest.touch()
    found = Follower(run).status()
    assert (found.preview, found.preview_step) == (newest, 800)
    (run / "preview.png").touch()
    assert Follower(run).status().preview == run / "preview.png"


@pytest.mark.parametrize("width", [20, 60, 117, 200])
@pytest.mark.parametrize("number", [1, 6])
def test_a_frame_keeps_its_width_and_names_every_run(tmp_path, width, number):
    folders = [write_run(tmp_path / f"run{i}", collapse=200 * i or None) for i in range(number)]
    lines = shown(folders, width)
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    assert all(f"run{i}" in text for i in range(number))


@pytest.mark.parametrize("height", [6, 12, 24, 60])
def test_a_frame_keeps_its_height(tmp_path, height):
    folders = [write_run(tmp_path / f"run{i}", collapse=300) for i in range(3)]
    for width in (60, 120, 240):
        lines = shown(folders, width, height)
        assert len(lines) <= height + 1
        assert max(map(cell_len, lines)) <= width
    assert "no room for" in "\n".join(shown(folders, 60, 12))


def test_a_frame_says_what_the_monitor_found(tmp_path):
    text = "\n".join(shown([write_run(tmp_path / "bad", steps=600, collapse=500, rollbacks=2)], 100))
    for wanted in ("bad  running", "600 of 1,000 steps", "20 steps a second", "20 s left", "rolled back 2 times"):
        assert wanted in text
    for wanted in ("alarm (variety)", "have become alike", "Done: went back to step 200", "samples at step 600"):
        assert wanted in text
    rows = {line.split()[1]: line for line in text.splitlines() if " ± " in line}
    assert "alarm" in rows["vendi"]
    assert "suspicious" in rows["coverage"]
    assert "1 ± 0.03" in rows["vendi"]
    assert rows["vendi"].index("±") == rows["coverage"].index("±")
    healthy = "\n".join(shown([write_run(tmp_path / "good", steps=600)], 100))
    assert "calm" in healthy
    assert not re.search("alarm|suspicious|rolled", healthy)


def test_long_numbers_keep_their_columns(tmp_path):
    """Mutant: figures with all their digits, which push the marks out of the panel."""
    folder, names = write_run(tmp_path / "run"), ("duplicates", "nearest_train")
    row = {"step": 900, "figures": dict.fromkeys(names, -0.000123456), "suspicion": dict.fromkeys(names, 0.7)}
    row["reference"] = {"duplicates": [0.009922123, 0.01345678], "nearest_train": [-1.234567e-05, 9.87654e-07]}
    (folder / "monitor.jsonl").write_text(json.dumps(row))
    for width in (60, 90):
        lines = [line for line in shown([folder], width) if line[2:].startswith(("dupl", "near"))]
        assert [line.rstrip(" │").endswith("suspicious") for line in lines] == [True, True]


def test_a_terminal_without_unicode_gets_letters(run):
    console = Console(width=80, file=io.TextIOWrapper(io.BytesIO(), "ascii"), record=True)
    console.print(frame([Follower(run).status()], console, None))
    assert console.export_text().isascii()


def test_where_colours_are_off_pictures_are_of_characters(run, monkeypatch):
    """Mutant: half-blocks without their colours, which are all alike."""
    monkeypatch.setenv("NO_COLOR", "1")
    lines = shown([run], 80, force_terminal=True, color_system="truecolor")
    assert not any("▀" in line for line in lines)
    assert any("@" in line for line in lines)


def test_a_text_of_a_file_does_not_control_the_terminal(tmp_path):
    """Mutant: the sentence printed as it is; an escape sequence in it could rename the window."""
    folder = write_run(tmp_path / "run")
    row = {
        "step": 999,
        "figures": {"\x1b]0;a": 1},
        "alarm": "variety",
        "sentence": "x\x1b[2Jy\r\n\x07z",
        "action": "\x9b",
    }
    (folder / "monitor.jsonl").write_text(json.dumps(row))
    (folder / "preview.txt").write_text("hel\x1b[2Jlo\n")
    text = "\n".join(shown([folder], 100))
    assert "x [2Jy" in text
    assert "hel [2Jlo" in text
    assert not set(text) & set("\x1b\x07\r\x9b")


def test_a_run_of_texts_shows_them(tmp_path):
    folder = write_run(tmp_path / "run")
    for path in (folder / "monitor").iterdir():
        path.unlink()
    (folder / "preview.txt").write_text("hello\nworld\n")
    lines = shown([folder], 60)
    assert any("preview.txt" in line for line in lines)
    assert any("world" in line for line in lines)


def test_json_is_one_object_of_finite_numbers(call, tmp_path):
    one = write_run(tmp_path / "one", steps=600, collapse=500, last={"loss": float("nan")})
    two = write_run(tmp_path / "two", finished=True)
    code, found, said = call("watch", one, two, "--json")
    assert (code, said) == (0, [])
    first, second = found["runs"]
    assert (first["run"], first["state"], second["state"]) == (str(one), "running", "finished")
    assert first["metrics"]["loss"] is None
    assert [verdict["step"] for verdict in first["verdicts"]] == [500, 600]
    assert first["monitor"]["marks"]["vendi"] == "alarm"
    assert second["verdicts"] == []
    assert json.loads(json.dumps(as_plain(Follower(one).status()), allow_nan=False)) == first


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "run: no such folder; check the path, or begin the run first"),
        (lambda path: path.mkdir(), "run: must be a run folder, and holds nothing; name a folder that"),
        (lambda path: path.write_text(""), "run: must be a run folder, and is a file; name its folder"),
        (
            lambda path: write_run(path / "inner"),
            "must be a run folder, and has no config.json; name a run in it: .*inner",
        ),
        (
            lambda path: (path.mkdir(), (path / "x").touch()),
            "must be a run folder, and has no config.json; name a folder",
        ),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{")), "config.json: not valid JSON"),
        (
            lambda path: (path.mkdir(), (path / "config.json").write_text('{"type": "x"}')),
            "must be the folder of a training",
        ),
    ],
)
def test_bad_input_is_one_line(call, tmp_path, make, message):
    make(tmp_path / "run")
    code, found, said = call("watch", tmp_path / "run", "--once")
    assert (code, found, len(said)) == (2, None, 1)
    assert re.search(message, said[0]), said[0]


def test_nothing_is_written(run, call):
    """Mutant: a temporary file, or a new time of a folder, by which `--resume` would find another one."""
    before = {path: path.stat() for path in [run, *run.rglob("*")]}
    assert call("watch", run, "--once")[0] == 0
    after = {path: path.stat() for path in [run, *run.rglob("*")]}
    assert after.keys() == before.keys()
    assert all(after[path].st_mtime_ns == before[path].st_mtime_ns for path in before)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_live_view_follows_until_ctrl_c(run, end):
    """In a pseudo-terminal: 0 after Ctrl-C, its usual end, and 143 after SIGTERM; torch is not loaded.

    Mutant: Ctrl-C as in other commands, exit code 130 with "stopped before the end".
    """
    code = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, 'end'));"
        f"sys.argv = ['thalweg', 'watch', {str(run)!r}, '--every', '0.1']; import thalweg.cli.main as c; c.main()"
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
    environment = {
        k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "COVERAGE_PROCESS_START")
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment | {"TERM": "xterm-256color"},
    )
    os.close(theirs)
    found = _read(ours, "800 of 1,000 steps")
    assert "\x1b[?1049h" in found  # a screen of its own
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 810, "loss": 0.1, "seconds": 40.5}\n')
    _read(ours, "810 of 1,000 steps")
    process.send_signal(end)
    found = _read(ours, "False end")
    assert process.wait(20) == (0 if end == signal.SIGINT else 143)
    assert "\x1b[?1049l" in found  # the screen of before
    assert ("stopped before the end" in found) == (end == signal.SIGTERM)
    os.close(ours)


def _read(descriptor, wanted, longest=30.0):
    """What the terminal shows until a text comes."""
    found, end = "", time.monotonic() + longest
    while wanted not in ESCAPE.sub("", found):
        assert time.monotonic() < end, found
        if select.select([descriptor], [], [], 0.1)[0]:
            found += os.read(descriptor, 65536).decode("utf-8", "replace")
    return found


def test_a_curve_goes_from_the_lowest_to_the_highest():
    assert curve([0, 0, 1, 2, 3, 4, 5, 6, 7], 9) == "▁▁▂▃▄▅▆▇█"
    assert curve([0] * 100 + [i // 100 for i in range(800)], 9) == "▁▁▂▃▄▅▆▇█"
    assert curve([7, 0], 5, ascii_only=True) == "@_"
    assert curve([1.0] * 4, 4) == "▄▄▄▄"
    assert curve([1e9, 0, 0, 0, 7], 5) == "█▁▁▁█"  # a wild first step hides nothing
    assert curve([0, 1, 2, float("nan"), 3, float("inf")], 6)[3::2] == "xx"
    assert curve([], 5) == curve([1.0], 0) == ""
    assert curve([float("nan")], 5) == "x"


def test_a_picture_is_drawn_two_pixels_a_character(tmp_path):
    image = Image.new("RGB", (2, 4), (0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0))
    image.putpixel((1, 3), (0, 0, 255))
    image.save(tmp_path / "x.png")
    console = Console(color_system="truecolor", width=10, force_terminal=True, file=io.StringIO())
    segments = [list(line.render(console, end="")) for line in picture.lines(tmp_path / "x.png", 2, 2)]
    colours = [
        [(s.style.color.triplet.hex, s.style.bgcolor.triplet.hex) for s in line for _ in s.text] for line in segments
    ]
    assert colours == [
        [("#ff0000", "#000000"), ("#000000", "#000000")],
        [("#000000", "#000000"), ("#000000", "#0000ff")],
    ]
    assert [str(line) for line in picture.lines(tmp_path / "x.png", 2, 2, colours=False)] == [". ", " ."]


def test_a_grid_is_cut_to_whole_tiles_that_can_be_read(run):
    """Five tiles of 28 pixels in 30 columns: two, of about 14 pixels each."""
    lines = picture.lines(run / "monitor" / "step-00000100.png", 30, 8)
    assert {line.cell_len for line in lines} == {32 - 2}
    assert len(lines) in (7, 8)
    assert len(picture.lines(run / "monitor" / "step-00000100.png", 300, 100)) == 100


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"no picture"])
def test_a_file_that_is_no_picture_is_not_drawn(tmp_path, data):
    (tmp_path / "x.png").write_bytes(data)
    assert picture.lines(tmp_path / "x.png", 20, 10) == []
    assert picture.lines(tmp_path / "none.png", 20, 10) == []


def test_numbers_have_the_digits_that_fit():
    found = [number(value) for value in (0.5, 1234567, -0.000123456, -1.23456e-105, float("nan"), float("inf"))]
    assert found == ["0.5", "1.235e+06", "-0.000123", "-1.2e-105", "nan", "inf"]
    assert number(-1.234567e-05, 7, 3) == "-1e-05"


def test_durations_are_words():
    found = [duration(seconds) for seconds in (0, 59.4, 61, 3599, 3600, 90000, 3 * 86400)]
    assert found == ["0 s", "59 s", "1 min 1 s", "59 min 59 s", "1 h 0 min", "25 h 0 min", "3 days"]
