"""The log-likelihood of runs of the recipe rbm on the official test digits: exact, and between two bounds.

    python benchmarks/rbm.py RUN [RUN ...] --data mnist.npz --json rbm.json

Digits are binary: a pixel above 0.5 is 1. Exact where the constant can be summed (20 hidden units). Annealing to log Z
errs to the high side, RAISE to the low one; beside them independent pixels.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import thalweg
from thalweg.core.errors import UserError
from thalweg.evaluate.states import independent_log_prob
from thalweg.normaliser.log_z import log_z
from thalweg.normaliser.raise_bound import raise_bound


def binary(path: Path, part: str) -> torch.Tensor:
    """(N, 1, 28, 28) of 0 and 1, float32."""
    return (torch.from_numpy(np.load(path)[part])[:, None] > 127).float()


@torch.no_grad()
def figures(run: str, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run, in nats a digit."""
    bundle, train, test = thalweg.load(run), binary(args.data, "x_train"), binary(args.data, "x_test")
    energy: Any = bundle.model
    u = torch.cat([energy(x) for x in test.split(1000)]).double()
    row = {"run": run, "num_hidden": energy.num_hidden, **bundle.config["training"]}
    row["independent"] = independent_log_prob(train, test).mean().item()
    row["error"] = (u.std() / len(u) ** 0.5).item()
    u_train = torch.cat([energy(x) for x in train[:10_000].split(1000)]).double().mean()
    try:
        exact = copy.deepcopy(energy).double().log_z().item()
        row |= {"log_z": exact, "exact": -u.mean().item() - exact, "exact_train": -u_train.item() - exact}
    except UserError:
        pass
    start = time.process_time()
    found = log_z(
        energy,
        shape=tuple(test.shape[1:]),
        start=train[: args.chains],
        num_chains=args.chains,
        num_steps=args.steps,
        seed=args.seed,
    )
    row["log_z_ais"] = [found.forward, found.forward_error, found.estimate, found.low, found.high, found.ess]
    row["warning"] = found.warning
    row["ais"] = -u.mean().item() - found.forward
    row["seconds_ais"], start = time.process_time() - start, time.process_time()
    some = test[: args.rows]
    bound = raise_bound(
        energy, some, num_chains=args.raise_chains, num_steps=args.steps, start=train[:256], seed=args.seed
    )
    row["raise"], row["raise_error"], row["raise_rows"] = bound.mean, bound.error, len(some)
    row["raise_same_rows_energy"] = -u[: len(some)].mean().item()  # log p of these rows is this less log Z
    row["seconds_raise"] = time.process_time() - start
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--chains", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000, help="levels of each annealing")
    parser.add_argument("--rows", type=int, default=200, help="test digits that RAISE takes")
    parser.add_argument("--raise-chains", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write every row to this file, one a line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for run in args.runs:
        row = figures(run, args)
        print(json.dumps(row, indent=1), flush=True)
        if args.json:
            with args.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
