"""What checkpoints cost: seconds and bytes of a save, and their share of the time at the default interval.

    python benchmarks/saving.py                    # the recipes dual and pcd on 5,000 digits

A run of the recipe as it is, saved every few steps and stopped after `--saves` of them; the median counts. Between two
saves lie, by default, about 60 seconds of steps as the plan timed them, at least one step. Trust R8 allows a share of
5 %. Threads as torch takes them (OMP_NUM_THREADS).
"""

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path
from statistics import median

from thalweg.run.fit import Request, fit
from thalweg.training.plan import CHECKPOINT_SECONDS, Plan
from thalweg.training.state import TrainState
from thalweg.training.trainer import Interrupted

ALLOWED = 0.05


def measure(recipe: str, data: str, saves: int, every: int) -> tuple[float, list[float], int]:
    """(seconds a step, seconds of each save, bytes of a checkpoint) of a recipe; the first save warms up."""
    seconds: list[float] = []
    sizes: list[int] = []
    save = TrainState.save

    def timed(state: TrainState, folder: Path, keep: int, *group: object) -> Path:
        start = time.perf_counter()
        path = save(state, folder, keep, *group)  # pyright: ignore[reportArgumentType]
        seconds.append(time.perf_counter() - start)
        sizes.append(sum(file.stat().st_size for file in path.iterdir()))
        if len(seconds) == saves + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return path

    # snapshots of the guard travel in the checkpoint: with one at every step both are there from the third save on
    overrides = ["train.precision=fp32", f"train.checkpoint_every={every}", "train.guard.every=1"]
    request = Request(data=data, recipe=recipe, steps=1000 * every * saves, overrides=overrides)
    TrainState.save = timed
    try:
        with tempfile.TemporaryDirectory(prefix="saving-") as folder:
            try:
                fit(request, Path(folder) / "run", tensorboard=False)
            except Interrupted:
                plan = Plan.load(Path(folder) / "run")
    finally:
        TrainState.save = save
    assert plan is not None
    return plan.step_seconds, seconds[1:], max(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["dual", "pcd"])
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--every", type=int, default=2, help="steps between the saves that are timed")
    args = parser.parse_args()
    print(f"{'recipe':<8}{'step s':>10}{'save s':>10}{'worst s':>10}{'MB':>10}{'interval s':>12}{'share %':>10}")
    for recipe in args.recipes:
        step, saves, size = measure(recipe, args.data, args.saves, args.every)
        interval = max(round(CHECKPOINT_SECONDS / step), 1) * step
        share = median(saves) / (interval + median(saves))
        cells = [f"{step:.3f}", f"{median(saves):.3f}", f"{max(saves):.3f}", f"{size / 1e6:.1f}", f"{interval:.0f}"]
        verdict = "" if share <= ALLOWED else f"  more than {ALLOWED:.0%}"
        print(f"{recipe:<8}{''.join(f'{c:>{w}}' for c, w in zip(cells, (10, 10, 10, 10, 12), strict=True))}"
              f"{100 * share:>10.2f}{verdict}")  # fmt: skip


if __name__ == "__main__":
    main()
