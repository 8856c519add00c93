"""The level between two modes in 1,000 dimensions: single-scale against dual score matching.

    python benchmarks/two_scales.py --json two_scales.json
    python benchmarks/two_scales.py --steps 500 --seeds 1

The data are w N(0, s² I) + (1 - w) N(0, S² I): two thin shells with nothing between them. Scores at one small noise
level say how the energy runs along each shell, and nothing of the difference between the two. Dual score matching
learns it on the way over large noise, where the shells meet (Guth, Kadkhodaie & Simoncelli 2025). Both train the same
network of |y| and t. Printed: U at a typical point of the outer shell less U at one of the inner, at the lowest noise.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from thalweg.core.rng import generator
from thalweg.energy.wrappers import AtNoise
from thalweg.objective.score.dual import DualScoreMatching
from thalweg.objective.score.noise_levels import NoiseLevels
from thalweg.objective.score.score import DenoisingScoreMatching
from thalweg.run.in_memory import optimise
from thalweg.training.settings import TrainSettings

DIM, INNER, OUTER, SHARE = 1000, 0.5, 2.0, 0.7  # D, s, S, w
SIGMA_MIN, SIGMA_MAX = 0.05, 30.0


class RadialEnergy(nn.Module):
    """U(y, t) = |y|² / (2 (v + t)) + D log(2 pi (v + t)) / 2 + D f(|y| / sqrt(D (v + t)), log t), f a perceptron.

    v is the data's mean variance a coordinate, so that f corrects one Gaussian.
    """

    t_min, t_max = SIGMA_MIN**2, SIGMA_MAX**2

    def __init__(self, width: int = 64):
        super().__init__()
        self.variance = SHARE * INNER**2 + (1 - SHARE) * OUTER**2
        layers = (nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        """The energy, (B, D) and (B,) to (B,) nats."""
        total, squared = self.variance + t, y.square().sum(1)
        radius = (squared / (DIM * total)).sqrt()
        level = 2 * (t / self.t_min).log() / math.log(self.t_max / self.t_min) - 1
        f = self.layers(torch.stack([4 * (radius - 1), 4 * level], 1)).squeeze(1)
        return 0.5 * squared / total + DIM * (0.5 * (2 * math.pi * total).log() + f)


class SingleScale(nn.Module):
    """U(y, t_min): the same network at the lowest noise level."""

    def __init__(self, inner: RadialEnergy):
        super().__init__()
        self.inner = inner

    def forward(self, y: Tensor) -> Tensor:
        """The energy of y, which is noisy already."""
        return AtNoise(self.inner, self.inner.t_min)(y)


class Draws:
    """Fresh rows at each step."""

    def __init__(self, seed: int, rows: int):
        self.seed, self.rows = seed, rows

    def batch(self, step: int) -> tuple[Tensor, None]:
        """(rows (n, D), no labels)."""
        draws = generator(self.seed, "two-scales", step)
        scale = torch.where(torch.rand(self.rows, 1, generator=draws) < SHARE, INNER, OUTER)
        return scale * torch.randn(self.rows, DIM, generator=draws), None


def truth(y: Tensor, t: float) -> Tensor:
    """-log p_t(y), (B,) nats, float64."""
    squared, logs = y.double().square().sum(1), []
    for share, scale in ((SHARE, INNER), (1 - SHARE, OUTER)):
        v = scale**2 + t
        logs.append(math.log(share) - 0.5 * squared / v - 0.5 * DIM * math.log(2 * math.pi * v))
    return -torch.logsumexp(torch.stack(logs), 0)


def difference(energy: Any) -> float:
    """U at the outer shell less U at the inner one, at the lowest noise level."""
    t = SIGMA_MIN**2
    direction = torch.ones(1, DIM) / math.sqrt(DIM)
    y = torch.cat([math.sqrt(DIM * (scale**2 + t)) * direction for scale in (INNER, OUTER)])
    with torch.no_grad():
        inner, outer = energy(y).tolist()
    return outer - inner


def learned(method: str, seed: int, steps: int, rows: int = 256, space_only: bool = False) -> float:
    """The difference that a method learns. `space_only`: dual score matching without its time score."""
    torch.manual_seed(seed)
    network: Any = RadialEnergy()
    settings = TrainSettings.model_validate(
        {"steps": steps, "batch_size": rows, "learning_rate": 5e-3, "weight_decay": 0.0, "precision": "fp32"}
        | {"ema": 0.99, "guard": {"policy": "warn"}}
    )
    if method == "single":
        objective: Any = DenoisingScoreMatching(sigma=SIGMA_MIN)
        return difference(optimise(SingleScale(network), objective, Draws(seed, rows), settings, seed=seed))
    levels = NoiseLevels(share=0.0)
    objective = DualScoreMatching(levels=levels, scale=math.inf, time_weight=0.0 if space_only else 1.0)
    found = optimise(network, objective, Draws(seed, rows), settings, seed=seed)
    return difference(AtNoise(found, SIGMA_MIN**2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--json", type=Path, help="also write every row to this file, one a line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    want = difference(lambda y: truth(y, SIGMA_MIN**2))
    print(f"truth {want:.1f} nats\n{'method':<8}{'seed':>5}{'found':>10}{'relative error':>16}{'CPU s':>8}")
    for method in ("single", "dual"):
        for seed in range(args.seeds):
            start = time.process_time()
            found = learned(method, seed, args.steps)
            seconds, error = time.process_time() - start, found / want - 1
            print(f"{method:<8}{seed:>5}{found:>10.1f}{error:>16.2%}{seconds:>8.0f}", flush=True)
            if args.json:
                row = {"method": method, "seed": seed, "found": found, "truth": want, "relative_error": error}
                with args.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row | {"cpu_seconds": seconds}) + "\n")


if __name__ == "__main__":
    main()
