"""A service in a process of its own, over a model of the tests: `python process.py PORT_FILE SECONDS_A_CALL`."""

import sys
import time
from pathlib import Path

import numpy as np

from thalweg.bundle.servable import TensorSpec


class Slow:
    """E(x) = sum of x, after some seconds; a batch takes as long as a row. A row of -1 stands for a dead worker."""

    title, content, flag_rate = "slow", "rows", None
    inputs = (TensorSpec("x", "FP64", (-1, 2)),)
    outputs = (TensorSpec("energy", "FP64", (-1,)),)

    def __init__(self, seconds):
        self.seconds = seconds

    def score(self, rows, *, alpha=None):
        time.sleep(self.seconds)
        if (rows["x"] == -1).any():
            raise SystemExit
        return {"energy": np.asarray(rows["x"].sum(1))}


if __name__ == "__main__":
    from thalweg.serve.app import create_app
    from thalweg.serve.server import run
    from thalweg.serve.settings import ServeSettings

    def say(address):
        place = Path(sys.argv[1])
        place.with_suffix(".tmp").write_text(address)
        place.with_suffix(".tmp").rename(place)

    settings = ServeSettings(port=0, page=False, drain=float(sys.argv[3]) if len(sys.argv) > 3 else 10.0)
    sys.exit(run(create_app({"slow": Slow(float(sys.argv[2]))}, settings), settings, say=say))
