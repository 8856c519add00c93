"""Labels that depend on each other: log p(y | x) of a multi-label table, beside a logistic regression a label.

    python examples/multilabel.py                                   a generated table, whose law is known
    python examples/multilabel.py music.csv happy-pleased,sad-lonely --weight-decay 1

Prints the mean log-likelihood of held-out rows in nats, all labels of a row together, over five splits, and which
labels come together more often than the covariates tell.
"""

import argparse
import functools

import numpy as np
import pandas as pd
import torch

import thalweg
from thalweg.energy.networks.conditional import LabelEnergy
from thalweg.normaliser.conditional import conditional_log_prob, sample_conditional

MOODS = ["calm", "happy", "sad", "angry"]


def generated(n: int = 2000) -> tuple[pd.DataFrame, np.ndarray]:
    """Songs with three measures and four moods, and log p(moods | measures) of each song under the true law."""
    truth = LabelEnergy(shape=(3 + len(MOODS),), num_targets=len(MOODS), depth=0)
    with torch.no_grad():
        truth.linear.weight.copy_(torch.tensor([[-1.5, 0, 0], [1, 1, 0], [-1, 0, 1], [1, 0, 1.0]]))
        truth.linear.bias.copy_(torch.tensor([0.5, 0.0, 0.0, -0.5]))
        truth.coupling[0, 3], truth.coupling[1, 2], truth.coupling[0, 2] = -5.0, -4.0, 3.0  # J is half their sum
        x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
        y = sample_conditional(truth, x, 1)[0]
        log_p = conditional_log_prob(truth, x, y).numpy()
    measures = pd.DataFrame(x.numpy(), columns=["tempo", "level", "minor"])
    return pd.concat([measures, pd.DataFrame(y.int().numpy(), columns=MOODS)], axis=1), log_p


def main() -> None:
    """Five splits of one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", help="a CSV of numbers")
    parser.add_argument("targets", nargs="?", help="its labels, columns of 0 and 1, with commas between")
    parser.add_argument("--weight-decay", type=float, default=0.1, help="1 for hundreds of rows, less for more")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--splits", type=int, default=5)
    given = parser.parse_args()
    frame, log_p = (pd.read_csv(given.table), None) if given.table else generated()
    targets = given.targets.split(",") if given.targets else MOODS
    frame = frame[[name for name in frame if name not in targets] + targets]
    results = []
    for seed in range(given.splits):
        energy = functools.partial(LabelEnergy, num_targets=len(targets))
        how = {"weight_decay": given.weight_decay}
        bundle = thalweg.train(
            energy, frame, held_out=0.2, seed=seed, steps=given.steps, settings=how, progress=False, device="cpu"
        )
        figures = bundle.config["conditional"]
        results.append({"energy": figures["log_prob"], **figures["baselines"]})
    print(pd.DataFrame(results).agg(["mean", "std"]).round(3).to_string())
    if log_p is not None:
        print(f"the true law, on all rows: {log_p.mean():.3f}")
    print("\nJ of the last split: positive where two labels come together")
    print(pd.DataFrame(bundle.model.couplings.numpy(), targets, targets).round(2).to_string())


if __name__ == "__main__":
    main()
