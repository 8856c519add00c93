"""Schedules along the chain against a constant of equal cost: in training with persistent chains, and from noise.

    python benchmarks/schedules.py training --json FILE     # recipes pcd and toy2d, a schedule over each visit
    python benchmarks/schedules.py sampling --json FILE     # chains from noise on the energies trained with a constant

A decay of h goes from twice the recipe's step size to a tenth of it, one of T from 2 to 1: the law at its end is the
model's. All forms of a row take as many gradients. Training is judged by the exact negative log-likelihood, in nats in
standardised units, as the energy is normalised on a grid. A form wins where, on validation rows, its mean over seeds is
lower than the constant's by more than the larger of the two deviations over the seeds; test rows stand beside. Sampling
is judged by MMD² (mean of five bandwidths) and recall.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from thalweg.core import config
from thalweg.core.errors import Diverged
from thalweg.core.rng import generator
from thalweg.data.toy import TOYS
from thalweg.data.transform import Standardize
from thalweg.evaluate.vectors import compare
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.run.fit import Request, settings
from thalweg.run.in_memory import optimise
from thalweg.sampler.chain import run_chain
from thalweg.sampler.schedule import Cosine, Linear, WarmRestarts

ROWS, CHAINS = 2000, 1000
STEPS = {"pcd": 350, "toy2d": 600}  # updates
VISIT = {"pcd": 20, "toy2d": 5}  # steps of a chain in an update
DATA = ("two-moons", "eight-gaussians")


def forms(h: float, n: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, fields of the sampler) for a chain of n steps whose constant step size is h."""
    yield "constant", {"step_size": h}
    yield "h linear", {"step_size": Linear(first=2 * h, last=0.1 * h, num_steps=n)}
    yield "h cosine", {"step_size": Cosine(first=2 * h, last=0.1 * h, num_steps=n)}
    yield "h in two cycles", {"step_size": WarmRestarts(first=2 * h, last=0.1 * h, num_steps=max(n // 2, 2))}
    yield "T cosine", {"step_size": h, "temperature": Cosine(first=2.0, last=1.0, num_steps=n)}


def rows(data: str, stream: str, n: int = ROWS) -> Tensor:
    """Rows of a toy that no other stream has, in data units."""
    return TOYS[data].sample(n, generator(0, "benchmark-" + stream))


def trained(recipe: str, data: str, seed: int, fields: dict[str, Any]) -> tuple[nn.Module, Standardize]:
    """(energy, transform) after the steps of `STEPS`."""
    run = settings(Request(data=data, recipe=recipe, steps=STEPS[recipe], overrides=["train.precision=fp32"]), "vector")
    x = rows(data, "train", 20_000)
    transform = Standardize().fit(x)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        energy = config.build(run.energy, "energy", shape=(2,))
    chains = config.build(run.objective, "objective")
    assert isinstance(chains, ContrastiveDivergence)
    chains = replace(chains, num_steps=VISIT[recipe], sampler=replace(chains.sampler, **fields))
    return optimise(energy, chains, x, run.train, transform=transform, seed=seed), transform


@torch.no_grad()
def nll(energy: nn.Module, x: Tensor, half: float = 5.0, points: int = 400) -> float:
    """mean E(x) + log Z in nats, Z by the midpoint rule on [-half, half]², in standardised units."""
    axis = (torch.arange(points, dtype=torch.float32) + 0.5) * (2 * half / points) - half
    grid = torch.cartesian_prod(axis, axis)
    log_z = torch.cat([-energy(part) for part in grid.split(20_000)]).double().logsumexp(0)
    return float(energy(x).double().mean() + log_z) + 2 * torch.tensor(2 * half / points).log().item()


def training(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a recipe, data set, form and seed."""
    found = []
    for recipe in args.recipes:
        for data in args.data:
            for name, fields in forms(step_size(recipe), VISIT[recipe]):
                for seed in range(args.seeds):
                    start, row = time.process_time(), {"recipe": recipe, "data": data, "form": name, "seed": seed}
                    try:
                        energy, transform = trained(recipe, data, seed, fields)
                        for stream in ("validation", "test"):
                            row[stream] = nll(energy, transform.forward(rows(data, stream)))
                    except Diverged as error:
                        row["diverged"] = str(error)
                    found.append(row | {"cpu_seconds": time.process_time() - start})
                    print(json.dumps(found[-1]), flush=True)
    return found


def step_size(recipe: str) -> float:
    """The recipe's own."""
    return settings(Request(data="two-moons", recipe=recipe), "vector").sampler["step_size"]


def sampling(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a recipe, data set, form, length of the chain and seed."""
    found = []
    for recipe in args.recipes:
        for data in args.data:
            for seed in range(args.seeds):
                energy, transform = trained(recipe, data, seed, {})
                kernel = config.build(settings(Request(data=data, recipe=recipe), "vector").sampler, "sampler")
                x = torch.randn(CHAINS, 2, generator=generator(seed, "start"))
                for length in args.lengths:
                    for name, fields in forms(step_size(recipe), length):
                        end = run_chain(replace(kernel, **fields), energy, x, num_steps=length, seed=seed)
                        row = {"recipe": recipe, "data": data, "form": name, "seed": seed, "length": length}
                        for stream in ("validation", "test"):
                            figures = compare(end, transform.forward(rows(data, stream, CHAINS)))
                            row |= {stream: figures["mmd2_multi"], f"{stream}_recall": figures["recall"]}
                        found.append(row)
                        print(json.dumps(row), flush=True)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Mean and deviation over the seeds, a line a form."""
    lines, groups = [], sorted({tuple(r.get(k) for k in ("recipe", "data", "length")) for r in found}, key=str)
    for group in groups:
        mine = [r for r in found if tuple(r.get(k) for k in ("recipe", "data", "length")) == group]
        names = list(dict.fromkeys(r["form"] for r in mine))
        lines.append(f"\n{' '.join(str(part) for part in group if part)}")
        scores = {n: [[r[s] for r in mine if r["form"] == n and s in r] for s in ("validation", "test")] for n in names}
        for name, (validation, test) in scores.items():
            if len(test) < 2:
                lines.append(f"  {name:<28} diverged or one seed: {test}")
                continue
            won = min(scores["constant"][0], default=0) and mean(scores["constant"][0]) - mean(validation) > max(
                stdev(scores["constant"][0]), stdev(validation)
            )
            verdict = "wins" if won else ""
            cells = f"{mean(validation):10.4f} ± {stdev(validation):.4f} {mean(test):10.4f} ± {stdev(test):.4f}"
            lines.append(f"  {name:<28}{cells}  {verdict}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["training", "sampling"])
    parser.add_argument("--recipes", nargs="+", default=["pcd", "toy2d"], choices=sorted(STEPS))
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lengths", nargs="+", type=int, default=[50, 400], help="steps of the chains from noise")
    parser.add_argument("--json", type=Path, help="also write all rows to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {"training": training, "sampling": sampling}[args.what](args)
    if args.json:
        args.json.write_text("\n".join(map(json.dumps, found)) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
