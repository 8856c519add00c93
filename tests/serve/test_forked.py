"""Scores by a process of their own: the same as in the thread, and a process that ends loses no request of others."""

import errno
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from thalweg.bundle.servable import TensorSpec
from thalweg.core.errors import Diverged, UserError
from thalweg.serve.engine import forker as forker_module
from thalweg.serve.engine import forking
from thalweg.serve.engine.forked import InProcess
from thalweg.serve.engine.forker import Forker
from thalweg.serve.engine.rejected import WorkerLost
from thalweg.serve.engine.scoring import NICER, InThread

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread computes")
DIE, RAISE, HANG, ODD, LEAVE, MUTE, NO_ANSWER, WARN, SHARE = (-float(i) for i in range(1, 10))


class Mute(Exception):
    """Has no text, and cannot be pickled."""

    def __str__(self):
        raise ValueError("no text")

    def __reduce__(self):
        raise TypeError("no pickle")


class Unreadable:
    """Cannot be built again."""

    def __reduce__(self):
        return _raise, ()


def _raise():
    raise MemoryError


class Told:
    """E(x) = sum of x; some rows end the process, raise or hang. `pid`: by which process a row was scored."""

    title, content, flag_rate = "told", "rows", None
    inputs = (TensorSpec("x", "FP64", (-1, 2)),)
    outputs = (TensorSpec("energy", "FP64", (-1,)),)

    closed = 0

    def process(self, *, of):
        return os.getpid(), of

    def count(self, stop, *, die=None):
        try:
            with torch.no_grad():  # must not stay on for others
                for i in range(stop):
                    if i == die:
                        os.kill(os.getpid(), signal.SIGKILL)
                    yield os.getpid(), i
        finally:
            self.closed += 1

    def state(self):
        return self.closed, torch.is_grad_enabled()

    def score(self, rows, *, alpha=None):
        x = rows["x"][:, 0]
        if (x == DIE).any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (x == RAISE).any():
            raise UserError("must not be -2", argument="x", row=3)
        if (x == ODD).any():
            raise Diverged("no number", what="loss")
        if (x == LEAVE).any():
            sys.exit(3)
        if (x == MUTE).any():
            raise Mute
        if (x == NO_ANSWER).any():
            return {"energy": lambda: 1}
        if (x == WARN).any():
            logging.getLogger("other.model").warning("this is odd")
        if (x == SHARE).any():
            torch.ones(1 << 20).exp()
        if (x == HANG).any():
            time.sleep(600)
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        return {"energy": rows["x"].sum(1), "alpha": np.array([alpha]), "pid": np.array([os.getpid(), nice])}


@pytest.fixture
def scoring():
    found = InProcess(Forker({"told": Told()}))
    yield found
    found.close()


def rows(*values):
    return {"x": np.array([[value, 1.0] for value in values])}


@pytest.fixture
def heard(caplog):
    """Lines of the service's log."""
    logger = logging.getLogger("thalweg.serve")
    logger.addHandler(caplog.handler)
    yield lambda: list(dict.fromkeys((record.created, record.getMessage()) for record in caplog.records))
    logger.removeHandler(caplog.handler)


def gone(pid):
    """Whether a process has ended, within seconds."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":  # nobody waits for it
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


def test_scores_are_those_of_the_thread_by_a_nicer_process(scoring):
    ours = InThread({"told": Told()}).score("told", rows(3, 4), 0.2, 1)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    first, second = (scoring.score("told", rows(3, 4), 0.2, 1) for _ in range(2))
    for name in ("energy", "alpha"):
        np.testing.assert_array_equal(first[name], ours[name])
    pid, nice = first["pid"]
    assert pid != os.getpid()
    assert second["pid"][0] == pid
    assert nice == min(19, own + NICER)
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
    assert scoring.measured("told", 1).sizes[0] == 1
    assert scoring.call_method("told", "process", of=2) == (pid, 2)


def test_an_error_is_the_one_that_the_model_raised(scoring):
    with pytest.raises(UserError, match="x: must not be -2") as raised:
        scoring.score("told", rows(RAISE), None, 1)
    assert (raised.value.argument, raised.value.row) == ("x", 3)
    assert "in score" in raised.value.__notes__[0]
    with pytest.raises(Exception, match="Diverged: no number"):  # pickle cannot build it again
        scoring.score("told", rows(ODD), None, 1)
    assert scoring.score("told", rows(5), None, 1)["energy"].tolist() == [6]


@pytest.mark.parametrize(
    ("row", "kind", "told"),
    [
        (LEAVE, WorkerLost, "SystemExit: 3"),
        (MUTE, RuntimeError, "raise Mute"),
        (NO_ANSWER, (AttributeError, pickle.PicklingError), "pickle"),
    ],
)
def test_an_odd_error_is_told_with_its_traceback_and_ends_no_process(scoring, row, kind, told):
    before = scoring.score("told", rows(1), None, 1)["pid"][0]
    with pytest.raises(kind) as raised:
        scoring.score("told", rows(row), None, 1)
    assert told in raised.value.__notes__[0]
    assert scoring.score("told", rows(1), None, 1)["pid"][0] == before


def test_the_service_writes_log_records_of_the_process(scoring, caplog):
    scoring.score("told", rows(WARN), None, 1)
    assert [(one.name, one.getMessage()) for one in caplog.records] == [("other.model", "this is odd")]
    assert caplog.records[0].process != os.getpid()


def test_items_are_computed_one_after_another_by_the_process(scoring):
    pid = scoring.score("told", rows(1), None, 1)["pid"][0]
    first, second = (scoring.iterate("told", "count", stop) for stop in (9, 2))
    assert [next(first), next(second)] == [(pid, 0), (pid, 0)]
    assert scoring.call_method("told", "state") == (0, True)
    assert next(first) == (pid, 1)
    assert list(second) == [(pid, 1)]
    first.close()
    assert scoring.call_method("told", "state") == (2, True)


def test_items_end_with_the_process_that_has_begun_them(scoring):
    items = scoring.iterate("told", "count", 3, die=1)
    next(items)
    with pytest.raises(WorkerLost):
        next(items)
    assert scoring.score("told", rows(2), None, 1)["energy"].tolist() == [3]


def test_threads_that_were_used_before_the_fork_hang_no_call():
    """Those of OpenMP belong to a thread, and a process that is forked has but the thread and not what it waits for."""
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        torch.ones(1 << 20).exp()
        scoring = InProcess(Forker({"told": Told()}))
        thread = threading.Thread(target=lambda: found.append(scoring.score("told", rows(SHARE), None, 2)), daemon=True)
        thread.start()
        thread.join(20)
        scoring.close()
    finally:
        torch.set_num_threads(before)
    assert found


def test_another_process_takes_the_place_of_one_that_ends(scoring, heard):
    before = scoring.score("told", rows(1), None, 1)["pid"][0]
    with pytest.raises(WorkerLost):
        scoring.score("told", rows(1, DIE), None, 1)
    after = scoring.score("told", rows(1), None, 1)["pid"][0]
    assert after != before
    os.kill(after, signal.SIGTERM)  # it ends by the service alone
    os.kill(after, signal.SIGUSR1)  # by somebody else: nobody sees it
    assert scoring.score("told", rows(2), None, 1)["energy"].tolist() == [3]
    assert gone(before)
    assert gone(after)
    ends = [line.partition("(")[2].partition(")")[0] for _, line in heard()]
    assert ends == ["SIGKILL", "SIGKILL", "SIGUSR1"]


def test_a_request_that_cannot_be_read_is_told_and_fails_alone(scoring, heard):
    with pytest.raises(WorkerLost):
        scoring.score("told", {"x": Unreadable()}, None, 1)
    assert any("MemoryError" in line and "could not be read" in line for _, line in heard())
    assert scoring.score("told", rows(2), None, 1)["energy"].tolist() == [3]


def test_a_second_call_waits_in_the_process_and_outlives_it(scoring):
    scoring.score("told", rows(1), None, 1)
    for values in ((2,), (3, 4)):
        scoring.ask("told", rows(*values), None, 1)
    assert scoring.answers_within(20)
    assert scoring.answer()["energy"].tolist() == [3]
    assert scoring.answer()["energy"].tolist() == [4, 5]

    before = scoring.score("told", rows(1), None, 1)["pid"][0]
    for values in ((DIE,), (5,), (RAISE,)):
        scoring.ask("told", rows(*values), None, 1)
    with pytest.raises(WorkerLost):
        scoring.answer()
    found = scoring.answer()
    assert found["energy"].tolist() == [6]
    assert found["pid"][0] != before
    with pytest.raises(UserError, match="must not be -2"):
        scoring.answer()


def test_a_call_that_is_given_up_takes_none_with_it(scoring):
    """Also where the next one is too large to be sent before the process reads it."""
    pid = scoring.score("told", rows(1), None, 1)["pid"][0]
    os.kill(pid, signal.SIGSTOP)
    scoring.ask("told", rows(2), None, 1)
    large = {"x": np.ones((200_000, 2))}
    asked = threading.Thread(target=lambda: scoring.ask("told", large, None, 1))
    asked.start()
    asked.join(0.3)
    assert asked.is_alive()
    assert scoring.interrupt()
    asked.join(20)
    with pytest.raises(WorkerLost):
        scoring.answer()
    assert scoring.answer()["energy"].tolist() == [2] * 200_000


def test_large_calls_do_not_wait_for_large_answers(scoring):
    """Each side would wait for the other one to read."""
    scoring.score("told", rows(1), None, 1)
    large, found = {"x": np.ones((200_000, 2))}, []

    def ask():
        for _ in range(2):
            scoring.ask("told", large, None, 1)
        found.extend(scoring.answer()["energy"].sum() for _ in range(2))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(10)
    assert found == [400_000, 400_000]


def test_a_call_that_cannot_be_sent_ends_no_process(scoring):
    """It computes the one before, and may have begun items."""
    pid = scoring.score("told", rows(1), None, 1)["pid"][0]
    scoring.ask("told", rows(2), None, 1)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        scoring.ask("told", {"x": lambda: 1}, None, 1)
    scoring.ask("told", rows(3), None, 1)
    found = [scoring.answer() for _ in range(2)]
    assert [one["energy"].tolist() for one in found] == [[3], [4]]
    assert {one["pid"][0] for one in found} == {pid}


def test_nobody_waits_for_a_call_that_no_process_has(scoring):
    """The one before it was given up with its process, and `answer` sends it to the next one."""
    scoring.score("told", rows(1), None, 1)
    for value in (HANG, 2):
        scoring.ask("told", rows(value), None, 1)
    giving_up = threading.Timer(0.1, scoring.interrupt)
    giving_up.start()
    with pytest.raises(WorkerLost):
        scoring.answer()
    giving_up.join()
    assert scoring.answers_within(0.2)
    assert scoring.answer()["energy"].tolist() == [3]


def test_another_thread_begins_anew(scoring):
    scoring.score("told", rows(1), None, 1)
    scoring.ask("told", rows(2), None, 1)
    scoring.begin()  # the one that asked has ended
    assert scoring.score("told", rows(3), None, 1)["energy"].tolist() == [4]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_spare_process_forks_where_the_first_one_is_lost(scoring, heard, monkeypatch, number):
    """And a thread of the service computes where both are."""
    pid = scoring.score("told", rows(1), None, 1)["pid"][0]
    first, second = scoring.forker.forking
    first.control.settimeout(0.1)
    monkeypatch.setattr(forker_module, "PATIENCE", 0.1)
    os.kill(first.pid, number)
    if number == signal.SIGSTOP:  # nobody notices until it is asked
        os.kill(pid, signal.SIGKILL)
    assert gone(pid)  # nobody could end it any more
    after = [scoring.score("told", rows(2), None, 1)["pid"][0] for _ in range(2)]
    assert after[0] == after[1] not in (pid, os.getpid())
    os.kill(second.pid, signal.SIGKILL)
    assert gone(after[0])
    assert [scoring.score("told", rows(2), None, 1)["pid"][0] for _ in range(2)] == 2 * [os.getpid()]
    assert [line.rpartition(": ")[2] for _, line in heard()] == [
        "the process that forks has ended; the spare one takes its place",
        "a thread computes until the service is started anew",
    ]  # once


def test_where_no_process_is_to_be_had_for_a_moment_the_thread_computes(monkeypatch, heard):
    refusals, fork = [OSError(errno.EAGAIN, "not now")], forking.fork

    def forked():
        if refusals:
            raise refusals.pop()
        return fork()

    monkeypatch.setattr(forking, "fork", forked)
    scoring = InProcess(Forker({"told": Told()}))
    first, second = (scoring.score("told", rows(1), None, 1)["pid"][0] for _ in range(2))
    scoring.close()
    assert first == os.getpid() != second
    assert ["temporarily unavailable" in heard()[0][1], heard()[1][1]] == [True, "a process computes again"]


def test_a_thread_that_cannot_begin_hangs_no_call(monkeypatch):
    """Where memory is short, it may end before its first line."""
    monkeypatch.setattr(forking, "BEGIN", 0.05)
    monkeypatch.setattr(forking._thread, "start_new_thread", lambda *_: 1)
    scoring = InProcess(Forker({"told": Told()}))
    with pytest.raises(WorkerLost):
        scoring.score("told", rows(1), None, 1)
    scoring.close()


def test_where_no_thread_is_to_be_had_the_first_one_computes(monkeypatch):
    def start(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(forking._thread, "start_new_thread", start)
    scoring = InProcess(Forker({"told": Told()}))
    first, second = (scoring.score("told", rows(value), None, 1) for value in (1, 2))
    scoring.close()
    assert [first["energy"].tolist(), second["energy"].tolist()] == [[2], [3]]
    assert first["pid"][0] == second["pid"][0] != os.getpid()


def test_processes_compute_at_the_same_time_and_end_apart_and_together(scoring):
    other, lost = scoring.others(1)[0], []
    pids = [one.score("told", rows(1), None, 1)["pid"][0] for one in (scoring, other)]

    def wait():
        try:
            scoring.score("told", rows(HANG), None, 1)
        except WorkerLost:
            lost.append(True)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    assert other.score("told", rows(2), None, 1)["energy"].tolist() == [3]
    os.kill(pids[1], signal.SIGKILL)
    again = other.score("told", rows(2), None, 1)["pid"][0]
    assert len({*pids, again}) == 3
    assert waiting.is_alive()
    scoring.close()
    waiting.join(20)
    assert lost
    assert all(gone(pid) for pid in (*pids, again))


def test_a_call_is_given_up_with_its_process_whatever_that_does(scoring, heard):
    """R27: it is stopped, so nothing but SIGKILL reaches it; the call is not tried again."""
    pid, lost = scoring.score("told", rows(1), None, 1)["pid"][0], []

    def ask():
        try:
            scoring.score("told", rows(1), None, 1)
        except WorkerLost as error:
            lost.append(error)

    os.kill(pid, signal.SIGSTOP)
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    time.sleep(0.1)
    assert scoring.interrupt()
    thread.join(20)
    assert len(lost) == 1
    assert gone(pid)
    assert [line for _, line in heard()] == [
        "the process that computes has ended (SIGKILL); another one takes its place"
    ]
    assert not scoring.interrupt()  # the new one computes nothing
    assert scoring.score("told", rows(2), None, 1)["energy"].tolist() == [3]


def test_one_computation_at_a_time_in_a_process():
    """Scores that no process can be had for, and other work: no model need be safe for threads."""
    entered, go, found = threading.Event(), threading.Event(), []
    scoring = InThread({"told": Told()})
    first = threading.Thread(target=scoring.call, args=(lambda: entered.set() or go.wait(60),))
    second = threading.Thread(target=lambda: found.append(scoring.score("told", rows(1), None, 1)))
    first.start()
    assert entered.wait(60)
    second.start()
    second.join(0.1)
    assert not found
    go.set()
    first.join()
    second.join()
    assert len(found) == 1


def test_the_end_waits_for_no_process_that_is_stopped(scoring):
    pids = [one.pid for one in scoring.forker.forking] + [scoring.score("told", rows(1), None, 1)["pid"][0]]
    os.kill(pids[0], signal.SIGSTOP)
    closing = threading.Thread(target=scoring.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    assert all(gone(pid) for pid in pids)


def test_the_end_waits_for_no_call_that_hangs():
    """Nor does the thread compute what hangs."""
    scoring, lost = InProcess(Forker({"told": Told()})), []
    pid = scoring.score("told", rows(1), None, 1)["pid"][0]

    def ask():
        try:
            scoring.score("told", rows(HANG), None, 1)
        except WorkerLost as error:
            lost.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.1)
    scoring.close()
    thread.join(20)
    assert len(lost) == 1
    assert gone(pid)
    assert all(gone(one.pid) for one in scoring.forker.forking)


def test_no_process_holds_the_address():
    """Else a service could not be started again while a call hangs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        scoring = InProcess(Forker({"told": Told()}, listener))
        pids = [one.pid for one in scoring.forker.forking] + [scoring.score("told", rows(1), None, 1)["pid"][0]]
        own = os.readlink(f"/proc/self/fd/{listener.fileno()}")
        assert not any(own in [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()] for pid in pids)
        scoring.close()


def test_no_process_outlives_a_killed_service():
    read, write = os.pipe()
    service = os.fork()
    if not service:
        scoring = InProcess(Forker({"told": Told()}))
        pids = [one.pid for one in scoring.forker.forking] + [scoring.score("told", rows(1), None, 1)["pid"][0]]
        os.write(write, " ".join(map(str, pids)).encode())
        scoring.score("told", rows(HANG), None, 1)
        os._exit(0)
    pids = [int(word) for word in os.read(read, 100).split()]
    os.kill(service, signal.SIGKILL)
    os.waitpid(service, 0)
    assert all(gone(pid) for pid in pids)
    os.close(read)
    os.close(write)
