"""Many files scored by Ray's workers beside one process that scores the same: how much faster, what it costs (L9).

    python benchmarks/scale.py [--rows 200000] [--model detector,conv] [--rounds 3] [--block-rows 8192] [--json]

Per model: blocks a second of one process, of one worker of Ray and of two, as ratios within a round; the rounds are
interleaved, and the median counts. Steady state: the first blocks of each worker (it loads the model then) and the
start of Ray are left out and told apart. A detector of a table of 20 columns; an energy of 28 x 28 images with
convolutions and random weights, since weights do not change its speed.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from scoring import table

from thalweg import EnergyDetector
from thalweg.apps.anomaly.saved import DetectorBundle
from thalweg.scale.score_files import Engine, score_files
from thalweg.scale.scorers import Options

FILES, WARM = 4, 2  # blocks a worker that are left out


def detector(folder, rows):
    """A detector of 20 columns, and `rows` rows to score."""
    import pandas as pd

    names = [f"c{i}" for i in range(20)]
    fitted = EnergyDetector(random_state=0).fit(pd.DataFrame(table(5000, 20, 0), columns=names))
    DetectorBundle(fitted, {"header": True, "ignored": []}).save_pretrained(folder / "run")
    (folder / "in").mkdir()
    for i in range(FILES):
        frame = pd.DataFrame(table(rows // FILES, 20, i + 1), columns=names)
        parquet.write_table(pa.Table.from_pandas(frame, preserve_index=False), folder / "in" / f"{i}.parquet")
    return "detector", folder / "in"


def conv(folder, rows):
    """An energy of digits, trained for a few steps, and `rows` images of noise to score.

    It is trained in a process of its own: chains change how memory is kept, and Ray's workers have had none.
    """
    given = ["train.precision=fp32", "train.batch_size=16", "data.limit=600", "--no-report"]
    command = ["train", "mnist", "--recipe", "pcd-conv", "--steps", "2", "-o", str(folder / "run"), *given]
    subprocess.run([sys.executable, "-m", "thalweg", *command], check=True, stdout=subprocess.DEVNULL)
    (folder / "in").mkdir()
    draw = np.random.default_rng(0)
    for i in range(FILES):
        np.save(folder / "in" / f"{i}.npy", draw.integers(0, 256, (rows // FILES, 28, 28), dtype=np.uint8))
    return "energy", folder / "in"


def rate(kind, folder, data, engine, block_rows):
    """(blocks a second in steady state, seconds until then, blocks a second of this process's CPU)."""
    times, out, cpu = [], folder / "out", []
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    options = Options(str(folder / "run"))
    score_files(
        kind,
        options,
        str(data),
        str(out),
        engine=engine,
        block_rows=block_rows,
        advance=lambda done, total: (times.append(time.perf_counter()), cpu.append(time.process_time())),
    )
    blocks = len(list(out.glob("part-*")))
    times = times[:blocks]  # what follows fills q-values in
    skip = WARM * (engine.workers or 1)
    num = len(times) - 1 - skip
    return num / (times[-1] - times[skip]), times[skip] - began, num / (cpu[blocks - 1] - cpu[skip])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--model", default="detector,conv")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--block-rows", type=int, default=8192)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    engines = {"one process": Engine(), "1 worker": Engine("ray", 1), "2 workers": Engine("ray", 2)}
    for model in a.model.split(","):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rows = a.rows if model == "detector" else a.rows // 4
            block_rows = a.block_rows if model == "detector" else a.block_rows // 4 // 256 * 256
            kind, data = {"detector": detector, "conv": conv}[model](folder, rows)
            found = {name: [] for name in engines}
            for _ in range(a.rounds):
                for name, engine in engines.items():
                    found[name].append(rate(kind, folder, data, engine, block_rows))
        alone = [blocks for blocks, _, _ in found["one process"]]
        told = {"model": model, "rows a second, one process": statistics.median(alone) * block_rows}
        told["rows a CPU second, one process"] = block_rows * max(each[2] for each in found["one process"])
        for name in ("1 worker", "2 workers"):
            told[f"{name}, ratio"] = statistics.median(
                there / here for (there, *_), here in zip(found[name], alone, strict=True)
            )
            told[f"{name}, seconds to start"] = statistics.median(start for _, start, _ in found[name])
        told["one process, seconds to start"] = statistics.median(start for _, start, _ in found["one process"])
        if a.json:
            print(json.dumps(told), flush=True)
        else:
            print(*(f"{k}: {v if isinstance(v, str) else f'{v:,.2f}'}" for k, v in told.items()), sep="\n", flush=True)


if __name__ == "__main__":
    main()
