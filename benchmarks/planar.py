"""How near to maximum likelihood an energy in the plane is, by each way of training (row S26).

    python benchmarks/planar.py --seeds 3 --json planar.json
    python benchmarks/planar.py --methods exact nce --steps 1000 --data two-moons

The reference climbs the exact gradient of the likelihood: log Z is a sum over a grid, moved at random each step. The
others know no Z: noise-contrastive estimation, and contrastive divergence (the recipe toy2d). Each network is the
recipe's, and is normalised by a grid afterwards. Columns: KL(data || model) in nats on fresh rows, the same minus the
reference's of that seed, and the model's own log Z, which noise-contrastive estimation claims to be zero.
"""

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from thalweg.core.rng import generator
from thalweg.data.toy import TOYS
from thalweg.data.transform import Standardize
from thalweg.energy.networks.tilted_gaussian import TiltedGaussianEnergy
from thalweg.objective.base import Batch, Empty, Stateless
from thalweg.objective.noise_contrastive import NoiseContrastive
from thalweg.run.fit import Request
from thalweg.run.in_memory import fit_in_memory, optimise
from thalweg.training.settings import TrainSettings

SETS = ("eight-gaussians", "two-moons", "checkerboard")
ROWS, FRESH, SIDE = 20_000, 50_000, 3.2


@dataclass(frozen=True, kw_only=True)
class GridLikelihood(Stateless):
    """-log p(x) of rows in the plane, log Z by the midpoint rule on `side`² squares of a grid over [-half, half]².

    The grid is moved by a uniform part of a square at each step, so that no structure can hide between its points.
    """

    side: int = 80
    half: float = SIDE
    normalises = False

    def draw(self, state: Empty, batch: Batch, generator: torch.Generator, progress: float) -> tuple[Tensor, ...]:
        """The grid's offset in squares, (2,)."""
        return (torch.rand(2, generator=generator),)

    def loss(self, energy: Any, state: Empty, batch: Batch, noise: tuple[Tensor, ...]) -> Any:
        """Mean nats a row."""
        step = 2 * self.half / self.side
        axis = -self.half + step * torch.arange(self.side)
        grid = torch.cartesian_prod(axis, axis) + step * noise[0]
        u = energy(torch.cat([batch.x, grid]))
        log_z = torch.logsumexp(-u[len(batch.x) :], 0) + 2 * math.log(step)
        return u[: len(batch.x)].mean() + log_z, state, {"log_z": log_z.detach()}


def true_log_prob(name: str, x: Tensor) -> Tensor:
    """log p of rows (n, 2) in nats; for two moons by quadrature over the angle."""
    if (closed := TOYS[name].log_prob) is not None:
        return closed(x)
    angle = math.pi * (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    arc = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1) / 1.5
    points, found = torch.cat([arc, -arc]), []
    for part in x.double().split(500):
        squared = (part[:, None] - points).square().sum(-1)
        found.append(torch.logsumexp(-squared / (2 * 0.07**2), 1) - math.log(len(points) * 2 * math.pi * 0.07**2))
    return torch.cat(found)


@torch.no_grad()
def log_z(energy: Any, half: float = 6.0, side: int = 600) -> float:
    """log of the integral of exp(-E) over [-half, half]², in model units."""
    axis = -half + 2 * half * (torch.arange(side) + 0.5) / side
    rows = torch.cartesian_prod(axis, axis)
    u = torch.cat([energy(part) for part in rows.split(20_000)]).double()
    return float(torch.logsumexp(-u, 0)) + 2 * math.log(2 * half / side)


def trained(method: str, name: str, x: Tensor, transform: Standardize, steps: int, seed: int) -> Any:
    """The averaged network."""
    if method == "cd":
        request = Request(data=name, recipe="toy2d", seed=seed, steps=steps, overrides=["train.precision=fp32"])
        bundle = fit_in_memory(request)
        return bundle.model, bundle.transform
    torch.manual_seed(seed)
    energy = TiltedGaussianEnergy(width=64, depth=3, gain=4.0).fit(transform.forward(x))
    objective = GridLikelihood() if method == "exact" else NoiseContrastive(ratio=4)
    settings = TrainSettings.model_validate(
        {"steps": steps, "batch_size": 1024, "learning_rate": 5e-3, "weight_decay": 0.0, "precision": "fp32"}
    )
    return optimise(energy, objective, x, settings, transform=transform, seed=seed), transform


def one(method: str, name: str, steps: int, seed: int) -> dict[str, Any]:
    """One run's figures."""
    x = TOYS[name].sample(ROWS, generator(seed, f"toy/{name}"))
    transform, start = Standardize().fit(x), time.process_time()
    energy, transform = trained(method, name, x, transform, steps, seed)
    seconds = time.process_time() - start
    fresh = TOYS[name].sample(FRESH, generator(seed, "planar-fresh"))
    own = log_z(energy)
    with torch.no_grad():
        log_p = -energy(transform.forward(fresh)) - own + transform.log_abs_det(fresh)
    kl = (true_log_prob(name, fresh) - log_p).double()
    error = float(kl.std()) / math.sqrt(FRESH)
    return {"method": method, "data": name, "seed": seed, "kl": float(kl.mean()), "error": error, "log_z": own} | {
        "cpu_seconds": seconds
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--methods", nargs="+", default=["exact", "nce", "cd"], choices=["exact", "nce", "cd"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000, help="of exact and nce")
    parser.add_argument("--cd-steps", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="also write every row to this file, one a line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'data':<18}{'method':<8}{'seed':>5}{'KL':>9}{'+-':>8}{'- exact':>9}{'log Z':>9}{'CPU s':>8}")
    best: dict[tuple[str, int], float] = {}
    for method in sorted(args.methods, key=["exact", "nce", "cd"].index):
        for name in args.data:
            for seed in range(args.seeds):
                row = one(method, name, args.cd_steps if method == "cd" else args.steps, seed)
                if method == "exact":
                    best[name, seed] = row["kl"]
                row["above_exact"] = row["kl"] - best.get((name, seed), math.nan)
                numbers = f"{row['kl']:9.4f}{row['error']:8.4f}{row['above_exact']:9.4f}{row['log_z']:9.4f}"
                print(f"{name:<18}{method:<8}{seed:>5}{numbers}{row['cpu_seconds']:8.0f}", flush=True)
                if args.json:
                    with args.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
