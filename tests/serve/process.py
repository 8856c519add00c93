"""Services in processes of their own, over a model of the tests; told on standard input which to start and wait for."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from thalweg.bundle.servable import TensorSpec

LONG, SLOW = 0.1, 7.0
OTHERS = 0.01  # seconds of other rows than SLOW: so many that no machine takes the wait for a cheap call


class Slow:
    """E(x) = sum of x, after some seconds, of a call or of `each` row. A row of -1 ends the worker.

    Where it is LONG, only a row of SLOW takes that time, so that the measurement at start does not.
    """

    title, content, flag_rate = "slow", "rows", None
    inputs = (TensorSpec("x", "FP64", (-1, 2)),)
    outputs = (TensorSpec("energy", "FP64", (-1,)),)

    def __init__(self, seconds, loading, each):
        self.seconds, self.loading, self.each = seconds, loading, each

    def score(self, rows, *, alpha=None):
        time.sleep(self.loading)
        self.loading = 0.0
        seconds = self.seconds if self.seconds < LONG or (rows["x"] == SLOW).any() else OTHERS
        time.sleep(seconds * (len(rows["x"]) if self.each else 1))
        if (rows["x"] == -1).any():
            raise SystemExit
        return {"energy": np.asarray(rows["x"].sum(1))}


def serve(place, log, seconds, more):
    """Serve until a signal, and end this process.

    `more`: settings; `loading`: seconds of the model's first call; `stuck`: in place of the engine's constant; `each`:
    whether `seconds` are those of a row; `signals`: that come as soon as the address is told, `early`: before that.
    """
    from thalweg.serve import server
    from thalweg.serve.app import create_app
    from thalweg.serve.engine import engine
    from thalweg.serve.settings import ServeSettings

    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)

    def say(address):
        Path(f"{place}.tmp").write_text(address)
        Path(f"{place}.tmp").rename(place)
        for number in signals:
            os.kill(os.getpid(), number)

    signals, early = more.pop("signals", ()), more.pop("early", ())
    model = Slow(seconds, more.pop("loading", 0.0), more.pop("each", False))
    engine.STUCK = more.pop("stuck", engine.STUCK)
    settings = ServeSettings(port=0, page=False, **more)
    can_fork = server.can_fork

    def before_the_loop():
        for number in early:
            os.kill(os.getpid(), number)
        return can_fork()

    server.can_fork = before_the_loop
    os._exit(server.run(create_app({"slow": model}, settings), settings, say=say))


if __name__ == "__main__":  # it imports once, and forks a process a service: imports take most of a test's time
    import thalweg.serve.app
    import thalweg.serve.server  # noqa: F401

    for line in sys.stdin:
        what, *values = json.loads(line)
        if what == "start":
            pid = os.fork()
            if not pid:
                serve(*values)
            answer = pid
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(values[0], 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
