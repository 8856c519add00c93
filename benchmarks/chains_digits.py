"""What runs of the recipe pcd on digits are worth: chains as the bundle draws them, read by the digit network.

    thalweg train mnist --recipe pcd --steps 2000 --seed 0 --no-report -o RUN
    python benchmarks/chains_digits.py RUN [RUN ...] --data FOLDER     # FOLDER holds mnist.npz

Each run's samples are chains of as many Langevin steps as the bundle says, or of each of `--chain-steps`. They begin at
the bundle's own law of starts, uniform noise where it has none. Beside their row stand unseen test digits, a Gaussian
fitted to training digits, the starts themselves and uniform noise. "in order" is the share
of windows of 100 updates, the whole training through, in which the mean energies were real < chains < noise, and
"chains < noise" that of the second half alone: once training has converged, real and chains differ by chance only.
Test digits come from row 2,000 on, as in digits.py.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from digits import FIRST, images

import thalweg
from thalweg.bundle.chain_length import chain_steps, start_law
from thalweg.core.rng import generator
from thalweg.evaluate.digit_network import load_digit_network
from thalweg.evaluate.samples import gaussian_noise, quality

WINDOW = 10  # logged rows, each of ten updates


def order(run: Path) -> dict[str, float]:
    """How often mean energies stood in order in windows of the training, and the largest gap of a single update."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    names = ("energy_real", "energy_fake", "energy_noise")
    table = torch.tensor([[row[name] for name in names] for row in rows], dtype=torch.float64)
    means = table[: len(table) // WINDOW * WINDOW].view(-1, WINDOW, 3).mean(1)
    real, chains, noise = means.T
    return {
        "windows": len(means),
        "real < chains < noise": ((real < chains) & (chains < noise)).double().mean().item(),
        "chains < noise": (chains < noise).double().mean().item(),
        "real < noise": (real < noise).double().mean().item(),
        "largest gap": max(abs(row["gap"]) for row in rows),
    }


def energies(bundle: thalweg.Bundle, sets: dict[str, torch.Tensor]) -> dict[str, float]:
    """Mean energies at the end, nats."""
    return {name: bundle.energy(x).mean().item() for name, x in sets.items()}


def single(run: Path, test: torch.Tensor, train: torch.Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run."""
    bundle = thalweg.load(run)
    reference, unseen = test[FIRST : FIRST + 1000], test[FIRST + 1000 : FIRST + 1000 + args.num]
    noise = torch.rand(args.num, 1, 28, 28, generator=generator(0, "noise"))
    steps = args.chain_steps or [chain_steps(bundle)]
    sets = {f"{k} steps": bundle.sample(args.num, seed=0, num_steps=k) for k in steps}
    law = start_law(bundle)
    if law is not None:
        sets["starts"] = bundle.decode(law.draw(args.num, 0.0, generator(0, "starts")).float())
    sets |= {"real digits": unseen, "gaussian": gaussian_noise(train, args.num), "noise": noise}
    network = load_digit_network()
    return {
        "run": str(run),
        "training": bundle.config.get("training"),
        "throughout": order(run),
        "energies": energies(bundle, sets),
        "quality": {name: quality(x, reference, train, network) for name, x in sets.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--num", type=int, default=500, help="chains")
    parser.add_argument("--chain-steps", type=int, nargs="+", help="the bundle's own if not given")
    args = parser.parse_args()
    test, train = images(args.data, "mnist", "x_test"), images(args.data, "mnist", "x_train")[:5000]
    print(json.dumps([single(run, test, train, args) for run in args.runs], indent=2))


if __name__ == "__main__":
    main()
