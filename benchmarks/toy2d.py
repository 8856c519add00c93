"""Points in the plane by contrastive divergence: how good over many seeds, and what the guard is worth.

    python benchmarks/toy2d.py --seeds 10 --steps 10000          # the recipe as it is
    python benchmarks/toy2d.py --unstable --guard rollback       # far too fast, no regularisation, guarded
    python benchmarks/toy2d.py --unstable --guard warn           # and not

One table a data set. 2,000 samples against 2,000 fresh data in standardised units; beside them other fresh data, a
fitted Gaussian and uniform points. MMD² at the median distance, and its mean over five bandwidths (`multi`), without
which a Gaussian would pass on eight modes. `--unstable` multiplies the learning rate by 30 and takes off clipping and
all penalties, with a plain perceptron and unadjusted Langevin chains (the recipe pcd): the Metropolis test of toy2d's
chains would stop a broken energy from throwing them out. Success there is MMD² and multi of 0.01 at most.
Further words a.b=c override the recipe.
"""

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from thalweg.core.errors import Diverged, ThalwegError
from thalweg.core.rng import generator
from thalweg.data.toy import TOYS
from thalweg.evaluate.vectors import baselines, compare
from thalweg.run.fit import Request, fit
from thalweg.training.trainer import Interrupted

ROWS = 2000
SUCCESS = 0.01
FIGURES = ("mmd2", "mmd2_multi", "precision", "recall")
WORST = {"mmd2": max, "mmd2_multi": max, "precision": min, "recall": min}
UNSTABLE_RECIPE, UNSTABLE_RATE = "pcd", 30 * 1e-3
UNSTABLE = (
    f"train.learning_rate={UNSTABLE_RATE}",
    "train.clip=null",
    "train.weight_decay=0",
    "objective.energy_penalty=0",
    "objective.gradient_penalty=0",
)


def request(args: argparse.Namespace, data: str, seed: int) -> Request:
    """What `thalweg train` would be asked for."""
    recipe = args.recipe or (UNSTABLE_RECIPE if args.unstable else "toy2d")
    overrides = [*(UNSTABLE if args.unstable else ()), "train.precision=fp32"]
    if args.guard:
        overrides.append(f"train.guard.policy={args.guard}")
    return Request(data=data, recipe=recipe, steps=args.steps, seed=seed, overrides=[*overrides, *args.overrides])


def fresh(data: str, transform: Any, seed: int, stream: str) -> torch.Tensor:
    """Rows that no training saw, in the model's units."""
    return transform.forward(TOYS[data].sample(ROWS, generator(seed, "benchmark-" + stream)))


def one(args: argparse.Namespace, data: str, seed: int) -> dict[str, Any]:
    """One run: its figures, those of the baselines, what the guard did, seconds."""
    torch.set_num_threads(1)
    row: dict[str, Any] = {"data": data, "seed": seed, "diverged": False, "rollbacks": None}
    with tempfile.TemporaryDirectory(prefix="toy2d-") as folder:
        start, used = time.perf_counter(), time.process_time()
        try:
            bundle = fit(request(args, data, seed), Path(folder) / "run", tensorboard=False)
            row |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - used}
            row["rollbacks"] = bundle.config["training"].get("rollbacks")
            samples = bundle.transform.forward(bundle.sample(ROWS, seed=seed))
        except Interrupted:
            raise
        except (ThalwegError, ValueError) as error:  # the run or, of an energy without finite slopes, the sampling
            seconds = time.perf_counter() - start
            return {**row, "seconds": seconds, "diverged": isinstance(error, Diverged), "error": str(error)}
    reference, unseen = (fresh(data, bundle.transform, seed, name) for name in ("reference", "unseen"))
    beside = baselines(unseen, fresh(data, bundle.transform, seed, "train"), seed=seed)
    row["baselines"] = {name: compare(x, reference) for name, x in beside.items()}
    return row | compare(samples, reference)


def success(row: dict[str, Any]) -> bool:
    """Whether both discrepancies are small; NaN is not."""
    return all(row.get(name, float("nan")) <= SUCCESS for name in ("mmd2", "mmd2_multi"))


def line(name: str, row: dict[str, Any], *more: Any) -> str:
    """One line of a table."""
    cells = [f"{row[key]:.4f}" if key in row else "-" for key in FIGURES]
    return f"{name:<10}" + "".join(f"{cell!s:>12}" for cell in (*cells, *more))


def table(data: str, rows: list[dict[str, Any]]) -> str:
    """The data set's table: seeds, median and worst, baselines (medians over the seeds), and successes."""
    lines = [f"\n{data}", f"{'seed':<10}" + "".join(f"{h:>12}" for h in (*FIGURES, "rollbacks", "diverged", "seconds"))]
    for row in rows:
        back = "?" if row["rollbacks"] is None else row["rollbacks"]
        lines.append(line(str(row["seed"]), row, back, "yes" if row["diverged"] else "no", f"{row['seconds']:.0f}"))
    done = [row for row in rows if "baselines" in row]
    if done:
        lines.append(line("median", {key: median(row[key] for row in done) for key in FIGURES}))
        lines.append(line("worst", {key: WORST[key](row[key] for row in done) for key in FIGURES}))
        lines += [
            line(name, {key: median(row["baselines"][name][key] for row in done) for key in FIGURES})
            for name in done[0]["baselines"]
        ]
    lines.append(f"MMD² and multi at most {SUCCESS}: {sum(map(success, rows))} of {len(rows)} seeds")
    lines += [f"seed {row['seed']}: {row['error']}" for row in rows if "error" in row]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", default=[], help="a.b=c, as for thalweg train")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--data", nargs="+", default=["two-moons", "eight-gaussians"], choices=sorted(TOYS))
    parser.add_argument("--recipe", help="toy2d; pcd with --unstable")
    parser.add_argument("--unstable", action="store_true")
    parser.add_argument("--guard", choices=["rollback", "warn"], help="the guard's policy; the recipe's if not given")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each")
    parser.add_argument("--json", type=Path, help="also write every row to this file, one a line")
    return parser.parse_intermixed_args()


def main() -> None:
    args = arguments()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        runs = {data: [pool.submit(one, args, data, seed) for seed in seeds] for data in args.data}
        for data, futures in runs.items():
            rows = [future.result() for future in futures]
            if args.json:
                with args.json.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(row) + "\n" for row in rows)
            print(table(data, rows), flush=True)


if __name__ == "__main__":
    main()
