"""The statistical judge on sets of known order: one run at several steps, planted faults, real digits.

    thalweg train mnist --steps 2000 -o RUN train.checkpoint_every=50 train.keep=100
    python benchmarks/monitor_ladder.py RUN --data FOLDER          # FOLDER holds mnist.npz

All steps are of the one run: a folder with its config and that checkpoint alone is loaded as the bundle it was then.
Held-out digits are official test digits from row 2,000 on, which nobody chose anything on: 1,200 for `Diversity`, the
rest as real sets. A set's badness is the mean over the figures of the deviations on their bad side, 20 at most each
(`thalweg.monitor.figure.deviations`). The order that is known: noise < 50 steps < ... < 2,000 steps < real; one image <
two classes < real; copies < real. Rank correlations are of the first line; all pairs that the three lines order are
counted besides.
"""

import argparse
import json
import shutil
import tempfile
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr
from torch import Tensor

import thalweg
from thalweg.core.rng import generator
from thalweg.data import catalog
from thalweg.data.catalog import as_float
from thalweg.evaluate.pictures import grid
from thalweg.evaluate.samples import gaussian_noise
from thalweg.monitor import Diversity
from thalweg.monitor.figure import deviations

FIRST, HELD_OUT = 2000, 1200


def at_step(run: Path, step: int, folder: Path):
    """The bundle that the run was at that step."""
    name = f"step-{step:08d}"
    place = folder / str(step)
    (place / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "config.json", place)
    shutil.copytree(run / "checkpoints" / name, place / "checkpoints" / name)
    return thalweg.load(place)


def jittered(image: Tensor, n: int, g: torch.Generator) -> Tensor:
    """One image, moved by up to a pixel and with a little noise."""
    moves = torch.randint(-1, 2, (n, 2), generator=g).tolist()
    moved = torch.stack([torch.roll(image, tuple(move), (-2, -1)) for move in moves])
    return (moved + 0.02 * torch.randn(moved.shape, generator=g)).clamp(0, 1)


def planted(real: Tensor, labels: Tensor, train: Tensor, n: int, seed: int) -> dict[str, Tensor]:
    """Sets whose fault is known, and real digits."""
    g = generator(seed, "monitor-ladder")

    def some(x: Tensor) -> Tensor:
        return x[torch.randperm(len(x), generator=g)[:n]]

    a, b = torch.randperm(10, generator=g)[:2].tolist()
    return {
        "uniform noise": torch.rand(n, 1, 28, 28, generator=g),
        "Gaussian of the data's moments": gaussian_noise(train, n, seed=seed),
        "one image, jittered": jittered(some(real)[0], n, g),
        "2 of 10 classes": some(real[(labels == a) | (labels == b)]),
        "training rows": some(train),
        "real digits": some(real),
    }


def main() -> None:
    """Draw, measure, order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 200, 800, 2000])
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=200, help="real sets that are checked for false alarms")
    parser.add_argument("--out", type=Path, help="a folder for samples, which another call takes from it, and pictures")
    args = parser.parse_args()
    stored = np.load(args.data / "mnist.npz")
    test = torch.from_numpy(stored["x_test"]).float()[:, None] / 255
    rows = FIRST + torch.randperm(len(test) - FIRST, generator=generator(0, "rows"))  # later rows are by other writers
    held_out, real = test[rows[:HELD_OUT]], test[rows[HELD_OUT:]]
    labels = torch.from_numpy(stored["y_test"]).long()[rows[HELD_OUT:]]
    train = as_float(catalog.load("mnist").train)
    judge = Diversity(held_out, train)
    reference = judge.reference(args.n)

    sets: dict[str, list[Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bundles = {f"{step:,} steps": at_step(args.run, step, Path(folder)) for step in args.steps}
        for seed in range(args.seeds):
            found = planted(real, labels, train, args.n, seed)
            for name, bundle in bundles.items():
                found[name] = drawn(bundle, args.n, seed, args.out and args.out / f"{name} {seed} {args.n}.npy")
            for name, x in found.items():
                sets.setdefault(name, []).append(x)
    rows = {name: [measured(judge, reference, x) for x in found] for name, found in sets.items()}
    lines = [
        ["uniform noise", *bundles, "real digits"],
        ["one image, jittered", "2 of 10 classes", "real digits"],
        ["training rows", "real digits"],
    ]
    for name, found in rows.items():
        print(json.dumps({"set": name, **summary(found)}, ensure_ascii=False))
    print(json.dumps({"reference": {k: [round(v, 4) for v in band] for k, band in reference.items()}}))
    for seed in range(args.seeds):
        badness = {name: found[seed]["badness"] for name, found in rows.items()}
        print(json.dumps({"seed": seed, **ordered(badness, lines)}))
    start, alarms = time.perf_counter(), 0
    for call in range(args.calls):
        chosen = torch.randperm(len(real), generator=generator(call, "false-alarms"))[: args.n]
        alarms += judge.check(real[chosen]).alarm
    each = (time.perf_counter() - start) / max(args.calls, 1)
    print(json.dumps({"false alarms": alarms, "calls": args.calls, "seconds a check": round(each, 3)}))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, found in sets.items():
            (args.out / f"{name}.png").write_bytes(grid(found[0][:60], columns=12))


def drawn(bundle, n: int, seed: int, path: Path | None) -> Tensor:
    """n samples; those of the file where it is there, else stored in it."""
    if path is not None and path.exists():
        return torch.from_numpy(np.load(path))
    x = bundle.sample(n, seed=seed).cpu()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, x.numpy())
    return x


def measured(judge: Diversity, reference: dict[str, tuple[float, float]], x: Tensor) -> dict:
    """What the judge says of one set."""
    report = judge.check(x)
    off = deviations(report.figures, reference)
    return {**report._asdict(), "badness": sum(off.values()) / len(off)}


def summary(drawn: list[dict]) -> dict:
    """The means over the draws, and how many of them alarm."""
    figures = {k: round(float(np.mean([one["figures"][k] for one in drawn])), 3) for k in drawn[0]["figures"]}
    return {
        **figures,
        "badness": [round(one["badness"], 2) for one in drawn],
        "p": [round(one["p_value"], 4) for one in drawn],
        "alarms": sum(one["alarm"] for one in drawn),
        "kind": [one["kind"] for one in drawn],
        "sentence": drawn[0]["sentence"],
    }


def ordered(badness: dict[str, float], lines: list[list[str]]) -> dict[str, float]:
    """Rank correlations of the first line, which goes from bad to good, and how many pairs are in order."""
    place, value = range(len(lines[0])), [-badness[name] for name in lines[0]]
    pairs = [(a, b) for line in lines for a, b in combinations(line, 2)]
    return {
        "spearman": round(float(spearmanr(place, value).statistic), 3),
        "kendall": round(float(kendalltau(place, value).statistic), 3),
        "pairs in order": sum(badness[a] > badness[b] for a, b in pairs),
        "pairs": len(pairs),
    }


if __name__ == "__main__":
    main()
