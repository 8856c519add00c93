"""How fast a fitted detector of tables scores, and what its short sums cost: rows a second, nats lost.

    python benchmarks/scoring.py [--stored 5000,50000] [--rows 200000] [--columns 20] [--threads 1]

Generated rows: six hidden numbers through tanh, with noise. `wall` and `cpu` are rows a second by the clock and by the
processor's time (the one to read on a machine that others use too), the better of two rounds. `nats lost`: mean of the
kernels' energies over the exact sums, on 500 new rows; `again`: the share of rows whose sum is done with all rows.
"""

import argparse
import time

import numpy as np
import torch

from thalweg import EnergyDetector
from thalweg.energy.density.kde import KernelDensityEnergy


def table(n, columns, seed):
    draw = np.random.default_rng([1, seed])
    mix = np.random.default_rng(0).normal(size=(6, columns))
    return np.tanh(draw.normal(size=(n, 6)) @ mix) + 0.3 * draw.normal(size=(n, columns))


def timed(work):
    """(clock, processor) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def lost(detector, x):
    """Nats that the kernels' energies of x lie above the exact sums, on average."""
    energy, gaps = detector.energy_, []
    for name, kernel in energy.kernels_.items():
        rows, y = (torch.from_numpy(energy.scalings_[name](part)) for part in (energy.rows_, x))
        gaps.append(float((kernel(y) - KernelDensityEnergy(rows, t=kernel.t)(y)).mean()))
    return np.mean(gaps)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stored", default="5000,50000")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    x = table(a.rows, a.columns, 1)
    for stored in map(int, a.stored.split(",")):
        detector, rows = EnergyDetector(random_state=0), table(stored, a.columns, 0)
        fitted = timed(lambda made=detector, rows=rows: made.fit(rows))
        wall, cpu = np.min([timed(lambda made=detector: made.score_samples(x)) for _ in range(2)], axis=0)
        again = np.mean([kernel.search.exact_share for kernel in detector.energy_.kernels_.values()])
        print(
            f"{stored} stored, {a.threads} threads: fit {fitted[0]:.1f} s (cpu {fitted[1]:.1f}), rows/s wall "
            f"{a.rows / wall:,.0f}, cpu {a.rows / cpu:,.0f}; "
            f"{lost(detector, x[:500]):.4f} nats lost, {again:.1%} again",
            flush=True,
        )


if __name__ == "__main__":
    main()
