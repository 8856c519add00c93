"""The main job's figures on the official test digits: one table for a run, or the agreement of two.

    python benchmarks/digits.py RUN --data FOLDER              # FOLDER holds mnist.npz and fashion_mnist.npz
    python benchmarks/digits.py RUN --data FOLDER --other RUN2  # correlation of log p between two runs
    python scripts/train_digit_network.py --data FOLDER/fashion_mnist.npz --out clothes.safetensors
    python benchmarks/digits.py RUN --data FOLDER --of fashion_mnist --against mnist --network clothes.safetensors

Each npz has x_train and x_test, uint8 (N, 28, 28). Nothing is chosen here: the test digits are only measured on, from
row 2,000 on, since the first 2,000 digits were looked at when the recipe was settled. Every figure stands beside its
trivial baseline.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import thalweg
from thalweg.core.rng import generator
from thalweg.evaluate.corruptions import constants, inverted, shuffled_patches, uniform_noise
from thalweg.evaluate.detection import detection_table
from thalweg.evaluate.digit_network import WEIGHTS, digit_network_facts, load_digit_network
from thalweg.evaluate.likelihood import bits_per_dim, compare, dequantise, gaussian_prior, ode_log_prob
from thalweg.evaluate.samples import quality

FIRST = 2000  # the first test row that nobody looked at


def images(folder: Path, name: str, part: str) -> torch.Tensor:
    """(N, 1, 28, 28) float32 in [0, 1]."""
    return torch.from_numpy(np.load(folder / f"{name}.npz")[part]).float()[:, None] / 255


def single(run: str, data: Path, num_ode: int, of: str, against: str, weights: Path) -> dict:
    """All figures of one run on the set `of`, beside images of the set `against`; `weights`: of its classifier."""
    bundle = thalweg.load(run)
    train, test = images(data, of, "x_train"), images(data, of, "x_test")
    reference, unseen = test[FIRST : FIRST + 1000], test[FIRST + 1000 : FIRST + 2000]
    gaussian = gaussian_prior(train.flatten(1), bundle.t_min)
    train, other = train[:5000], images(data, against, "x_test")[:1000]
    start = time.perf_counter()
    samples = bundle.sample(1000, seed=0)
    seconds = time.perf_counter() - start
    network = load_digit_network(weights)
    columns = {"samples": samples, "real images": unseen}
    outs = {
        against: other,
        "uniform noise": uniform_noise(unseen),
        "inverted": inverted(unseen),
        "shuffled": shuffled_patches(unseen),
        "constants": constants(unseen),
    }
    figures = {
        "training": bundle.config.get("training"),
        "classifier": digit_network_facts(weights),
        "seconds for 1,000 samples": seconds,
        "quality": {name: quality(x, reference, train, network) for name, x in columns.items()},
        "detection": detection_table(bundle.energy, unseen, outs, train),
        "log_p": nats(bundle.log_prob, unseen),
        "log_p of the full-covariance Gaussian": nats(lambda x: gaussian(x.flatten(1)), unseen),
    }
    return figures | {"ode": second_opinion(bundle, unseen[:num_ode])}


def nats(log_prob: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> dict[str, float]:
    """Mean log p of the dequantised test images."""
    log_p = log_prob(dequantise(x, generator(0, "dequantise")))
    return {"nats": log_p.mean().item(), "bits_per_dim": bits_per_dim(log_p, x[0].numel()).mean().item()}


def second_opinion(bundle: thalweg.Bundle, x: torch.Tensor) -> dict[str, dict[str, float]]:
    """Network against ODE at draws of the model's own law (digits plus the lowest noise), and at the bare digits."""
    noise = math.sqrt(bundle.t_min) * torch.randn(x.shape, generator=generator(0, "noise-ode"))
    result = {}
    for name, y in {"noisy": x + noise, "bare": x}.items():
        with torch.no_grad():
            network = -bundle.noisy_energy(y, torch.full((len(y),), bundle.t_min)).double()
        ode = ode_log_prob(bundle.noisy_energy, y, t_min=bundle.t_min, t_max=bundle.t_max, prior=bundle.prior_log_prob)
        result[name] = compare(network, ode)
    return result


def agreement(run: str, other: str, data: Path, of: str) -> dict[str, float]:
    """Correlation of log p of two runs on 2,000 test images, and with the pixel sum as the trivial row."""
    x = images(data, of, "x_test")[FIRST : FIRST + 2000]
    a, b = thalweg.load(run).log_prob(x), thalweg.load(other).log_prob(x)
    ink = -x.flatten(1).sum(1)
    pairs = {"log p of the two runs": (a, b), "log p and minus the ink (trivial)": (a, ink)}
    return {name: torch.corrcoef(torch.stack(pair))[0, 1].item() for name, pair in pairs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--other")
    parser.add_argument("--num-ode", type=int, default=64)
    parser.add_argument("--of", default="mnist", help="the set that the run was trained on")
    parser.add_argument("--against", default="fashion_mnist", help="the set that it should tell from its own")
    parser.add_argument("--network", type=Path, default=WEIGHTS, help="weights of a classifier of the set")
    args = parser.parse_args()
    if args.other:
        result = agreement(args.run, args.other, args.data, args.of)
    else:
        result = single(args.run, args.data, args.num_ode, args.of, args.against, args.network)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
