"""What lies under a temporary name: it stays while its writer lives, wherever that is, and goes when that is dead."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thalweg.core import store, temporary
from thalweg.core.atomic_write import whole_file

WRITER = """
import os, sys, time
from pathlib import Path
from thalweg.core import store, temporary
from thalweg.core.atomic_write import whole_file
del os.O_TMPFILE  # as on a file system where each file has a name
os.getpid = lambda: 999_999_999  # as from another namespace of processes: no process of this number is here
what, path = sys.argv[1], Path(sys.argv[2])

def wait(place):
    print("writing", flush=True)
    time.sleep(600)

if what == "file":
    with whole_file(path) as file:
        file.write(b"half")
        file.flush()
        wait(file)
store.save_folder(path, lambda folder: ((folder / "half").write_bytes(b""), wait(folder)))
"""
ISOLATED = ["unshare", "--pid", "--fork", "--kill-child"]


def _can_isolate() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run([*ISOLATED, "true"], capture_output=True).returncode == 0


def _writer(what: str, path: Path, *prefix: str, code: str = WRITER) -> subprocess.Popen[str]:
    """A process in the middle of writing a file or a folder."""
    writer = subprocess.Popen([*prefix, sys.executable, "-c", code, what, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    return writer


def _end(writer: subprocess.Popen[str]) -> None:
    writer.kill()
    writer.communicate(timeout=60)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("where", ["beside us", "in a namespace of its own"])
def test_what_a_living_process_writes_stays_and_goes_when_it_is_killed(what: str, where: str, tmp_path: Path) -> None:
    """As two containers with one host name, whose process ids mean nothing to each other. Mutant: no lock is taken."""
    isolated = where != "beside us"
    if isolated and not _can_isolate():
        pytest.skip("no right to make a namespace of processes")
    writer = _writer(what, tmp_path / "a", *(ISOLATED if isolated else ()))
    try:
        before = _names(tmp_path)
        assert len(before) == 1
        temporary.clean(tmp_path)
        assert _names(tmp_path) == before
    finally:
        _end(writer)
    deadline = time.monotonic() + 60
    while _names(tmp_path) and time.monotonic() < deadline:  # the kernel lets go of the locks in its own time
        temporary.clean(tmp_path)
        time.sleep(0.01)
    assert _names(tmp_path) == []


def test_what_this_process_writes_stays(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as file:
        file.write(b"x")
        temporary.clean(tmp_path)

    def write(folder: Path) -> None:
        (folder / "b").write_bytes(b"y")
        temporary.clean(tmp_path)

    store.save_folder(tmp_path / "f", write)
    assert (tmp_path / "a").read_bytes() == b"x"
    assert (tmp_path / "f" / "b").read_bytes() == b"y"
    assert _names(tmp_path) == ["a", "f"]


def _left(kind: str, name: str, folder: Path, made_on: str, age: float = 0.0) -> Path:
    """What a dead writer left, so many seconds ago."""
    path = folder / f".thalweg-{kind}-{made_on}-0123456789abcdef-{name}"
    path.mkdir()
    (path / "part").write_bytes(b"x")
    for one in (path / "part", path):
        os.utime(one, (time.time() - age,) * 2)
    return path


def test_only_what_is_certainly_dead_or_old_is_removed(tmp_path: Path) -> None:
    here, there = temporary.boot(), "feedbeef"
    assert here != there
    stay = [
        _left("new", "young", tmp_path, there, 3600),
        _left("new", "unknown", tmp_path, temporary.UNKNOWN_BOOT, 3600),
        tmp_path / ".thalweg-notes",
        tmp_path / ".thalweg-new-4711-00000000-0-a",
    ]
    for path in stay[2:]:
        path.write_bytes(b"mine")
    _left("new", "dead", tmp_path, here)
    _left("new", "old", tmp_path, there, 2 * 24 * 3600)
    _left("old", "back", tmp_path, here)
    (tmp_path / "there").mkdir()
    _left("old", "there", tmp_path, here)
    temporary.clean(tmp_path)
    assert set(tmp_path.iterdir()) == {*stay, tmp_path / "back", tmp_path / "there"}
    assert (tmp_path / "back" / "part").read_bytes() == b"x"


def test_one_target_alone_is_cleaned(tmp_path: Path) -> None:
    kept, _ = (_left("new", name, tmp_path, temporary.boot()) for name in ("a", "b"))
    temporary.clean(tmp_path, "b")
    assert list(tmp_path.iterdir()) == [kept]


def test_without_locks_nothing_young_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, and file systems that know no flock. Mutant: a lock that cannot be had counts as free."""

    def no_locks(*_: object) -> None:
        raise OSError(95, "operation not supported")

    young, _ = (
        _left("new", name, tmp_path, temporary.boot(), age) for name, age in (("a", 3600), ("b", 2 * 24 * 3600))
    )
    with monkeypatch.context() as patch:
        patch.setattr(temporary.fcntl, "flock", no_locks)
        temporary.clean(tmp_path)
        store.write_bytes(tmp_path / "x", b"1")
        store.save_folder(tmp_path / "f", lambda folder: store.write_bytes(folder / "y", b"2"))
    assert set(tmp_path.iterdir()) == {young, tmp_path / "x", tmp_path / "f"}
    with monkeypatch.context() as patch:
        patch.setattr(temporary, "fcntl", None)
        temporary.clean(tmp_path)
        store.write_bytes(tmp_path / "x", b"2")
        store.save_folder(tmp_path / "f", lambda folder: store.write_bytes(folder / "y", b"3"))
    assert set(tmp_path.iterdir()) == {young, tmp_path / "x", tmp_path / "f"}
    assert (tmp_path / "x").read_bytes() == b"2"


def test_a_writer_whose_file_was_taken_for_dead_makes_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the making and the lock, `clean` may come."""
    flock, calls = temporary.fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        if not calls:
            calls.append(how)
            temporary.clean(tmp_path)
        flock(descriptor, how)

    for write in (
        lambda: store.write_bytes(tmp_path / "a", b"x"),
        lambda: store.save_folder(tmp_path / "f", lambda folder: store.write_bytes(folder / "y", b"2")),
    ):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(temporary.fcntl, "flock", late)
            write()
        assert calls
    assert _names(tmp_path) == ["a", "f"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_is_replaced_whether_or_not_the_system_can_swap(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swaps:
        monkeypatch.setattr(temporary, "_exchange", lambda *_: False)
    for text in (b"1", b"2"):
        store.save_folder(tmp_path / "f", lambda folder, text=text: store.write_bytes(folder / "y", text))
        assert (tmp_path / "f" / "y").read_bytes() == text
        assert _names(tmp_path) == ["f"]


def test_a_users_folder_is_never_cleaned(tmp_path: Path) -> None:
    left = _left("new", "scores.csv", tmp_path, temporary.boot()), _left("new", "x", tmp_path, temporary.boot())
    with whole_file(tmp_path / "scores.csv") as file:
        file.write(b"row")
    store.save_folder(tmp_path / "f", lambda folder: None)
    store.write_bytes(tmp_path / "b", b"")
    assert all(path.is_dir() for path in left)


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="files without a name are Linux's")
def test_a_killed_writer_of_a_file_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    named = WRITER.index("del os.O_TMPFILE")
    writer = _writer("file", tmp_path / "a", code=WRITER[:named] + WRITER[WRITER.index("os.getpid") :])
    assert _names(tmp_path) == ["a"]
    _end(writer)
    assert _names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_file_gets_the_rights_that_the_user_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o027)
    try:
        store.write_bytes(tmp_path / "nameless", b"x")
        monkeypatch.setattr(temporary, "_nameless", lambda path: None)
        store.write_bytes(tmp_path / "named", b"x")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())] == [0o640, 0o640]
