"""Rows a second of ONNX Runtime beside the library's own scores, one thread each, in turns: `export.py RUN...`.

Prints for each run the rows a second of both at a batch size, the median over rounds of their ratio, and its range.
"""

import argparse
import time

import numpy as np
import torch

from thalweg.bundle.files import load
from thalweg.export.export import exportable
from thalweg.export.formats import loaded, prepared, written
from thalweg.export.tracing import COUNTS

BATCHES = (64, 1000)
ROUNDS, SECONDS = 7, 0.4  # of each program in each round


def rate(run, rows, batch):
    """Rows a second, over about SECONDS."""
    begin, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < SECONDS:
        run(rows)
        done += batch
    return done / spent


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    torch.set_num_threads(1)
    for path in parser.parse_args().runs:
        servable, plan = exportable(load(path, device="cpu"))
        program, draws = plan.programs[0], torch.Generator().manual_seed(0)
        example = program.of_rows(servable.typical_rows(COUNTS[0], 0), draws)
        begin = time.process_time()
        module = prepared(program, "onnx", lambda n, s=servable: s.typical_rows(n, 0))
        data = written(program, module, "onnx", example, {})
        run, seconds = loaded(data, program, "onnx"), time.process_time() - begin
        print(f"{path}: {servable.title}, {len(data) / 1e6:.1f} MB, made in {seconds:.1f} s of CPU")
        for batch in BATCHES:
            rows = servable.typical_rows(batch, 1)
            run(rows), servable.score(rows)
            found = np.array([[rate(run, rows, batch), rate(servable.score, rows, batch)] for _ in range(ROUNDS)])
            ratio, (theirs, ours) = found[:, 0] / found[:, 1], np.median(found, axis=0)
            told = f"{theirs:,.0f} and ours {ours:,.0f} rows/s, ratio {np.median(ratio):.2f}"
            print(f"  batch {batch}: ONNX Runtime {told} ({ratio.min():.2f} to {ratio.max():.2f})")


if __name__ == "__main__":
    main()
