"""Does a chain length that grows from 1 to 30 halve the time of training at equal quality? For benchmarks/claims.py.

Every way to choose the length (`ARMS`) trains the same recipe for as many updates; quality stands beside the CPU time
of training. The arms beside the claim's two are its trivial rivals, which spend as little or less: shorter chains of
fixed length, and half the updates.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
import toy2d

from thalweg.core.rng import generator
from thalweg.evaluate.digit_network import load_digit_network
from thalweg.evaluate.samples import gaussian_noise, quality
from thalweg.run.fit import Request, fit

ARMS = {  # name: (the chain's length, share of the updates)
    "fixed 30": ("30", 1.0),
    "growing 1 to 30": ("[1,30]", 1.0),
    "fixed 15": ("15", 1.0),
    "fixed 30, half the updates": ("30", 0.5),
    "fixed 5": ("5", 1.0),
}
BATCH = 256


def in_the_plane(data: str, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """One run of the recipe toy2d: its figures and CPU seconds."""
    length, share = ARMS[arm]
    sizes = (f"train.batch_size={BATCH}", f"objective.buffer_size={BATCH}", f"objective.num_steps={length}")
    how = {"recipe": "toy2d", "unstable": False, "guard": None, "steps": round(share * steps)}
    return {"arm": arm} | toy2d.one(argparse.Namespace(**how, overrides=sizes), data, seed)


def schedule(args: argparse.Namespace) -> None:
    """Seeds outermost, so that what has been measured when somebody stops can be compared; goes on with such a file."""
    rows: list[dict[str, Any]] = []
    if args.json and args.json.exists():
        rows = [json.loads(text) for text in args.json.read_text(encoding="utf-8").splitlines()]
    done = {(row["seed"], row["data"], row["arm"]) for row in rows}
    for seed, data, arm in itertools.product(range(args.seeds), args.sets, args.arms):
        if (seed, data, arm) in done:
            continue
        rows.append(in_the_plane(data, arm, seed, args.steps))
        if args.json:
            with args.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(schedule_table(rows))


def schedule_table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds with standard errors; time as the median of the seeds' own ratios to "fixed 30"."""
    heads = ("data", "length", "seeds", "CPU seconds", "of fixed 30", "MMD²", "MMD², five bandwidths", "recall")
    lines = [line(*heads), "|---" * len(heads) + "|"]
    for data in dict.fromkeys(row["data"] for row in rows):
        mine = [row for row in rows if row["data"] == data]
        basis = {row["seed"]: row["cpu_seconds"] for row in mine if row["arm"] == "fixed 30"}
        for arm in dict.fromkeys(row["arm"] for row in mine):
            found = [row for row in mine if row["arm"] == arm]
            share = median(row["cpu_seconds"] / basis[row["seed"]] for row in found if row["seed"] in basis)
            cells = [spread([row[key] for row in found]) for key in ("mmd2", "mmd2_multi", "recall")]
            seconds = f"{median(row['cpu_seconds'] for row in found):.0f}"
            lines.append(line(data, arm, str(len(found)), seconds, f"{share:.2f}", *cells))
        for name in mine[0]["baselines"]:
            beside = [row["baselines"][name] for row in mine if row["arm"] == "fixed 30"]
            cells = [spread([row[key] for row in beside]) for key in ("mmd2", "mmd2_multi", "recall")]
            lines.append(line(data, f"*{name}*", str(len(beside)), "-", "-", *cells))
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
    network = load_digit_network()
    print("| length | updates | CPU seconds | confident | Fréchet |\n|---|---|---|---|---|")

    def show(name: str, updates: str, seconds: str, x: torch.Tensor) -> None:
        found = quality(x, reference, train, network)
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


def small_run(data: str, steps: int) -> torch.nn.Module:
    """The energy of a short run in the plane, for measurements on a network that has learnt something."""
    sizes = [f"train.batch_size={BATCH}", f"objective.buffer_size={BATCH}", "train.precision=fp32"]
    with tempfile.TemporaryDirectory() as folder:
        request = Request(data=data, recipe="toy2d", steps=steps, seed=0, overrides=sizes)
        return fit(request, Path(folder) / "run", tensorboard=False).model
