"""The speed of dual score matching: an update and 1,000 samples, beside plain eager code for the same network and loss.

    python benchmarks/dual.py                          # the table, a few minutes
    python benchmarks/dual.py --threads 1 --rounds 15  # for a busy machine

The network, loss and sampler are those of the recipe dual-image, batch 64 (`thalweg.bench.dual` has the details).
The rows of sampling time one step of a block of 100, a gradient, and multiply by the number of steps and blocks.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or threads that wait on a busy machine keep it busy

from thalweg.bench import dual as speed_dual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=["training", "sampling"], default=["training", "sampling"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count; medians are over these")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args, rows = parser.parse_args(), []
    for work in args.work:
        for threads in args.threads:
            measured = speed_dual.measure(work, threads, rounds=args.rounds)
            rows += measured
            print("\n" + speed_dual.table(measured), flush=True)
    if args.json:
        args.json.write_text(json.dumps([row._asdict() for row in rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
