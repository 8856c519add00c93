"""A detector of tables, a folder of tables and arrays, and processes that die where a test says."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from thalweg.apps.anomaly.detector import EnergyDetector
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.scale.score_files import score_files
from thalweg.scale.scorers import Options


def table(num: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {"flow": random.normal(size=num), "heat": random.exponential(size=num), "site": random.choice([*"uvw"], num)}
    )


@pytest.fixture(scope="session")
def rows():
    """Rows of two columns of numbers and one of three categories, so many, by a seed."""
    return table


@pytest.fixture(scope="session")
def detector(tmp_path_factory):
    """The folder of a detector that was fitted to 200 rows."""
    folder = tmp_path_factory.mktemp("detector") / "run"
    fitted = EnergyDetector(random_state=0).fit(table(200, 0))
    DetectorBundle(fitted, {"header": True, "ignored": []}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """A folder of two Parquet files of several row groups and a CSV: 700, 300 and 260 rows."""
    folder = tmp_path_factory.mktemp("tables")
    for name, num, group in (("a.parquet", 700, 130), ("b.parquet", 300, 1000)):
        frame = pa.Table.from_pandas(table(num, len(name) + num), preserve_index=False)
        parquet.write_table(frame, folder / name, row_group_size=group)
    table(260, 3).to_csv(folder / "c.csv", index=False)
    return folder


@pytest.fixture
def score(detector):
    """Call `score_files` with the detector and blocks of 100 rows."""

    def call(data: object, out: object, **more):
        given = {"block_rows": 100, **more}
        kind, run = given.pop("kind", "detector"), given.pop("run", detector)
        options = Options(str(run), *given.pop("options", ()))
        return score_files(kind, options, str(data), str(out), **given)

    return call


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.fixture(scope="session")
def bytes_of():
    return contents


@pytest.fixture(scope="session")
def forked():
    """Run a function in a forked process: its exit code, or minus the signal that ended it."""

    def call(work: Callable[[], object]) -> int:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return call
