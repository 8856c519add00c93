"""A set of 4 GB trains within 1.5 GB of anonymous memory, over all processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

MOST = 1.5e9  # bytes
SIZE = 4 << 30
SMALL = ["--no-report", "train.precision=fp32", "monitor.policy=none"]
IMAGE = ["--recipe", "pcd-conv-image", "energy.channels=[4,4,4]", "objective.num_steps=[2,3]", "train.batch_size=8"]
VECTOR = ["--recipe", "pcd-vector", "train.batch_size=64"]


def write_npy(path: Path) -> list[str]:
    """Colour images of 64 x 64."""
    n, draws = SIZE // (3 * 64 * 64), np.random.default_rng(0)
    rows = np.lib.format.open_memmap(path, "w+", "u1", (n, 64, 64, 3))
    for i in range(0, n, 4096):
        small = draws.integers(0, 256, (min(4096, n - i), 8, 8, 3), dtype=np.uint8)
        rows[i : i + 4096] = small.repeat(8, 1).repeat(8, 2)
    rows.flush()
    return IMAGE


def write_parquet(path: Path) -> list[str]:
    """64 columns in row groups of a million rows, 512 MB each, as writers make them by default."""
    draws, names = np.random.default_rng(0), [f"c{i}" for i in range(64)]
    schema = pa.schema([(name, pa.float64()) for name in names])
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for _ in range(SIZE // (1_000_000 * 64 * 8)):
            x = draws.normal(size=(64, 1_000_000))
            writer.write_table(pa.table([*x], schema=schema), row_group_size=1_000_000)
    return VECTOR


def anonymous(pid: int) -> int:
    """Bytes of a process and those that it started."""
    total = 0
    for each in [pid, *_children(pid)]:
        try:
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return total


def _children(pid: int) -> list[int]:
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            found += [child, *_children(child)]
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize(("write", "name"), [(write_npy, "x.npy"), (write_parquet, "x.parquet")])
def test_four_gigabytes_train_within_a_bound_of_memory(write, name, tmp_path) -> None:
    path = tmp_path / name
    how = write(path)
    command = [sys.executable, "-m", "thalweg", "train", str(path), "--steps", "20", "-o", str(tmp_path / "run")]
    most = 0
    with subprocess.Popen([*command, *how, *SMALL], env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        while process.poll() is None:
            most = max(most, anonymous(process.pid))
            time.sleep(0.05)
    path.unlink()
    assert process.returncode == 0
    assert 0 < most <= MOST
