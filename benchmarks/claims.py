"""Three claims about speed that articles repeat, measured here; the tables of docs/claims.md.

    python benchmarks/claims.py schedule --json plane.jsonl     # a chain length growing 1 -> 30 halves training time
    python benchmarks/claims.py digits --data FOLDER            # the same on digits; FOLDER holds mnist.npz

`schedule` trains the recipe toy2d in the plane with 256 chains, and `digits` the recipe pcd on the embedded digits,
once for each way to choose the chain's length (`ARMS`), and prints quality beside the CPU time of training. The arms
beside the claim's two are its trivial rivals, which spend as little: a fixed length of 15, and half the updates.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import toy2d

from thalweg.apps.fit import Request, fit
from thalweg.core.rng import generator
from thalweg.evaluate.images import gaussian_noise, quality
from thalweg.evaluate.judge import load_judge

ARMS = {  # name: (the chain's length, share of the updates)
    "fixed 30": ("30", 1.0),
    "growing 1 to 30": ("[1,30]", 1.0),
    "fixed 15": ("15", 1.0),
    "fixed 30, half the updates": ("30", 0.5),
}
BATCH = 256


def in_the_plane(data: str, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """One run of the recipe toy2d: its figures and CPU seconds."""
    length, share = ARMS[arm]
    sizes = (f"train.batch_size={BATCH}", f"objective.buffer_size={BATCH}", f"objective.num_steps={length}")
    how = {"recipe": "toy2d", "unstable": False, "guard": None, "steps": round(share * steps)}
    return {"arm": arm} | toy2d.one(argparse.Namespace(**how, overrides=sizes), data, seed)


def schedule(args: argparse.Namespace) -> None:
    """Seeds outermost, so that what has been measured when somebody stops can be compared."""
    rows = []
    for seed in range(args.seeds):
        for data in args.sets:
            for arm in ARMS:
                rows.append(in_the_plane(data, arm, seed, args.steps))
                if args.json:
                    with args.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(schedule_table(rows))


def schedule_table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds with standard errors; time as the median of the seeds' own ratios to "fixed 30"."""
    lines = ["| data | length | CPU seconds | of fixed 30 | MMD² | MMD², five bandwidths | recall |", "|---" * 7 + "|"]
    for data in dict.fromkeys(row["data"] for row in rows):
        mine = [row for row in rows if row["data"] == data]
        basis = {row["seed"]: row["cpu_seconds"] for row in mine if row["arm"] == "fixed 30"}
        for arm in ARMS:
            found = [row for row in mine if row["arm"] == arm]
            share = median(row["cpu_seconds"] / basis[row["seed"]] for row in found)
            cells = [spread([row[key] for row in found]) for key in ("mmd2", "mmd2_multi", "recall")]
            lines.append(line(data, arm, f"{median(row['cpu_seconds'] for row in found):.0f}", f"{share:.2f}", *cells))
        for name in mine[0]["baselines"]:
            beside = [row["baselines"][name] for row in mine if row["arm"] == "fixed 30"]
            cells = [spread([row[key] for row in beside]) for key in ("mmd2", "mmd2_multi", "recall")]
            lines.append(line(data, f"*{name}*", "-", "-", *cells))
    return "\n".join(lines)


def line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def spread(values: list[float]) -> str:
    """Mean ± standard error."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{mean(values):.4f} ± {error:.4f}"


def digits(args: argparse.Namespace) -> None:
    """The recipe pcd, judged on long chains from noise against test digits that nothing was chosen on."""
    from digits import FIRST, images

    test, train = images(args.data, "mnist", "x_test"), images(args.data, "mnist", "x_train")[:5000]
    reference, unseen = test[FIRST : FIRST + args.num], test[FIRST + args.num : FIRST + 2 * args.num]
    judge = load_judge()
    print("| length | updates | CPU seconds | confident | Fréchet |\n|---|---|---|---|---|")

    def show(name: str, updates: str, seconds: str, x: torch.Tensor) -> None:
        found = quality(x, reference, train, judge)
        print(line(name, updates, seconds, f"{found['confident']:.3f}", f"{found['frechet']:.1f}"), flush=True)

    for arm in args.arms:
        length, share = ARMS[arm]
        how = ["train.precision=fp32", f"objective.num_steps={length}"]
        updates = round(share * args.steps)
        with tempfile.TemporaryDirectory() as folder:
            request = Request(data="mnist", recipe="pcd", steps=updates, seed=args.seed, overrides=how)
            start = time.process_time()
            bundle = fit(request, Path(folder) / "run", tensorboard=False)
            seconds = time.process_time() - start
            show(arm, f"{updates}", f"{seconds:.0f}", bundle.sample(args.num, seed=0, num_steps=args.chain_steps))
    show("*real digits*", "-", "-", unseen)
    show("*gaussian*", "-", "-", gaussian_noise(train, args.num))
    show("*noise*", "-", "-", torch.rand(args.num, 1, 28, 28, generator=generator(0, "noise")))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    claims = parser.add_subparsers(required=True)
    plane = claims.add_parser("schedule", help="chain lengths, points in the plane")
    plane.set_defaults(run=schedule)
    plane.add_argument("--seeds", type=int, default=3)
    plane.add_argument("--steps", type=int, default=1200)
    plane.add_argument("--sets", nargs="+", default=["eight-gaussians", "two-moons"])
    plane.add_argument("--json", type=Path, help="add every row to this file")
    pictures = claims.add_parser("digits", help="chain lengths, digits")
    pictures.set_defaults(run=digits)
    pictures.add_argument("--data", type=Path, required=True)
    pictures.add_argument("--steps", type=int, default=500)
    pictures.add_argument("--seed", type=int, default=0)
    pictures.add_argument("--num", type=int, default=200, help="chains, and digits to compare them with")
    pictures.add_argument("--chain-steps", type=int, default=500)
    pictures.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS)[:3])
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    args.run(args)


if __name__ == "__main__":
    main()
