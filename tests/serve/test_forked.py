"""Scores by a process of their own: the same as in the thread, and a process that ends loses no request of others."""

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from thalweg.bundle.servable import TensorSpec
from thalweg.core.errors import Diverged, UserError
from thalweg.serve.engine.forked import InProcess
from thalweg.serve.engine.rejected import WorkerLost
from thalweg.serve.engine.scoring import NICER, InThread

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread computes")
DIE, RAISE, HANG, ODD = -1.0, -2.0, -3.0, -4.0


class Told:
    """E(x) = sum of x; some rows end the process, raise or hang. `pid`: by which process a row was scored."""

    title, content, flag_rate = "told", "rows", None
    inputs = (TensorSpec("x", "FP64", (-1, 2)),)
    outputs = (TensorSpec("energy", "FP64", (-1,)),)

    def score(self, rows, *, alpha=None):
        x = rows["x"][:, 0]
        if (x == DIE).any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (x == RAISE).any():
            raise UserError("must not be -2", argument="x", row=3)
        if (x == ODD).any():
            raise Diverged("no number", what="loss")
        if (x == HANG).any():
            time.sleep(600)
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        return {"energy": rows["x"].sum(1), "alpha": np.array([alpha]), "pid": np.array([os.getpid(), nice])}


@pytest.fixture
def scoring():
    found = InProcess({"told": Told()})
    yield found
    found.close()


def rows(*values):
    return {"x": np.array([[value, 1.0] for value in values])}


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
    assert scoring.measured("told", 1).threads == 1


def test_an_error_is_the_one_that_the_model_raised(scoring):
    with pytest.raises(UserError, match="x: must not be -2") as raised:
        scoring.score("told", rows(RAISE), None, 1)
    assert (raised.value.argument, raised.value.row) == ("x", 3)
    assert "in score" in raised.value.__notes__[0]
    with pytest.raises(Exception, match="Diverged: no number"):  # pickle cannot build it again
        scoring.score("told", rows(ODD), None, 1)
    assert scoring.score("told", rows(5), None, 1)["energy"].tolist() == [6]


def test_another_process_takes_the_place_of_one_that_ends(scoring):
    before = scoring.score("told", rows(1), None, 1)["pid"][0]
    with pytest.raises(WorkerLost):
        scoring.score("told", rows(1, DIE), None, 1)
    after = scoring.score("told", rows(1), None, 1)["pid"][0]
    assert after != before
    os.kill(after, signal.SIGKILL)  # by somebody else: nobody sees it
    assert scoring.score("told", rows(2), None, 1)["energy"].tolist() == [3]
    assert gone(before)
    assert gone(after)


def test_where_nothing_can_be_forked_the_thread_computes(scoring):
    pid = scoring.score("told", rows(1), None, 1)["pid"][0]
    os.kill(scoring._pid, signal.SIGKILL)
    assert scoring.score("told", rows(2), None, 1)["pid"][0] == pid  # it is still there
    os.kill(pid, signal.SIGKILL)
    assert scoring.score("told", rows(2), None, 1)["pid"][0] == os.getpid()


def test_the_end_waits_for_no_call_that_hangs():
    """Nor does the thread compute what hangs."""
    scoring, lost = InProcess({"told": Told()}), []
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
    assert gone(scoring._pid)


def test_no_process_holds_the_address():
    """Else a service could not be started again while a call hangs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        scoring = InProcess({"told": Told()}, listener)
        pids = scoring._pid, scoring.score("told", rows(1), None, 1)["pid"][0]
        own = os.readlink(f"/proc/self/fd/{listener.fileno()}")
        assert not any(own in [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()] for pid in pids)
        scoring.close()


def test_no_process_outlives_a_killed_service():
    read, write = os.pipe()
    service = os.fork()
    if not service:
        scoring = InProcess({"told": Told()})
        os.write(write, b"%d %d" % (scoring._pid, scoring.score("told", rows(1), None, 1)["pid"][0]))
        scoring.score("told", rows(HANG), None, 1)
        os._exit(0)
    pids = [int(word) for word in os.read(read, 100).split()]
    os.kill(service, signal.SIGKILL)
    os.waitpid(service, 0)
    assert all(gone(pid) for pid in pids)
    os.close(read)
    os.close(write)
