"""Do completed digits read as what they were? One table: four masks, ours beside its baselines.

    python benchmarks/inpaint.py RUN --data FOLDER [--images 100] [-n 8] [--json FILE]

FOLDER holds mnist.npz (x_train, y_train, x_test, y_test, uint8 (N, 28, 28)). Official test digits from row 2,000 on,
which were looked at for no choice; `--held-out` takes training digits from row 30,000 on instead, for choosing. A
figure is the share of digits that the digit network (LeNet) reads rightly, with the binomial 95 % interval (Wilson).

Variety: the mean squared distance of two completions, over that of the missing parts of the 20 training digits that are
nearest on the observed pixels. These agree with what is seen only roughly, so the yardstick is a long one, and for a
random mask, which leaves little open, no yardstick at all. Beside it the entropy of the classes, in nats, of both.
"""

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

import thalweg
from thalweg.apps.inpaint.inpaint import inpaint
from thalweg.apps.inpaint.masks import observed
from thalweg.apps.inpaint.posterior import Schedule
from thalweg.core.rng import generator
from thalweg.energy.base import energy_and_grad
from thalweg.energy.linear_observation import LinearObservation
from thalweg.energy.wrappers import AtNoise
from thalweg.evaluate.digit_network import features_and_classes, load_digit_network

MASKS = {
    "random 75 %": "random:0.75",
    "right half": "right-half",
    "bottom half": "bottom-half",
    "14 x 14 box": "box:7,7,21,21",
}
FIRST, HELD_OUT, NEIGHBOURS = 2000, 30_000, 20
VISITS = 2  # of RePaint; 1 and 2 are alike on training digits
REPAINT_CALLS = 33  # three times as many as ours; with as few it is worse


def repaint(bundle: thalweg.Bundle, x: torch.Tensor, seen: torch.Tensor, calls: int, seed: int) -> torch.Tensor:
    """RePaint (Lugmayr et al. 2022): reverse diffusion from t_max, observed pixels replaced by their noisy selves, each
    step taken twice.
    """
    energy, draws = bundle.noisy_energy, generator(seed, "repaint")
    sigma = Schedule(num_steps=calls // VISITS, sigma_start=math.inf, corrected=0).levels(energy)
    y = energy.prior(len(x), draws)
    for now, then in itertools.pairwise(sigma):
        for visit in range(VISITS):
            if visit:
                y = y + math.sqrt(now**2 - then**2) * torch.randn(y.shape, generator=draws)
            keep = (then / now) ** 2
            y = denoised(energy, y, now**2) * (1 - keep) + keep * y
            y = y + then * math.sqrt(1 - keep) * torch.randn(y.shape, generator=draws)
            y = torch.where(seen, x + then * torch.randn(y.shape, generator=draws), y)
    return torch.where(seen, x, denoised(energy, y, sigma[-1] ** 2)).clamp(0, 1)


def mixture(bundle: thalweg.Bundle, x: torch.Tensor, seen: torch.Tensor, seed: int) -> torch.Tensor:
    """A draw of the bundle's mixture alone, where completions start, without the energy."""
    draws, guess = generator(seed, "mixture"), bundle.mixture_prior
    y, out = bundle.encode(x).flatten(1), torch.empty(len(x), x[0].numel())
    for mask in torch.unique(seen.flatten(1), dim=0):
        rows = (seen.flatten(1) == mask).all(1).nonzero().squeeze(1)
        directions = LinearObservation.from_matrix(torch.eye(len(mask))[mask], 0.0)
        z = torch.randn(len(rows), guess.basis.shape[1], generator=draws)
        out[rows] = guess.sample_posterior(directions, y[rows][:, mask], z, torch.rand(len(rows), generator=draws))
    return bundle.transform.inverse(out.reshape(x.shape)).clamp(0, 1)


def denoised(energy, y: torch.Tensor, t: float) -> torch.Tensor:
    """y - t grad U."""
    return y - t * torch.cat([energy_and_grad(AtNoise(energy, t), part)[1] for part in y.split(96)])


def nearest(x: torch.Tensor, seen: torch.Tensor, train: torch.Tensor, k: int) -> torch.Tensor:
    """(B, k): the training digits that are nearest on the observed pixels."""
    x, seen, train = x.flatten(1), seen.flatten(1).float(), train.flatten(1)
    square = seen @ train.square().T - 2 * (x * seen) @ train.T
    return square.topk(k, largest=False).indices


def biharmonic(x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """scikit-image's."""
    from skimage.restoration import inpaint_biharmonic

    both = zip(x[:, 0].numpy(), ~seen[:, 0].numpy(), strict=True)
    filled = [inpaint_biharmonic(np.where(hole, 0, image), hole) for image, hole in both]
    return torch.from_numpy(np.stack(filled)).float().clamp(0, 1)[:, None]


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return centre - half, centre + half


def spread(x: torch.Tensor) -> torch.Tensor:
    """(n, B, D) to (B,): mean squared distance of two of the n."""
    return 2 * x.var(0).sum(-1)


def entropy(classes: torch.Tensor) -> float:
    """(n, B) classes: mean entropy over the B, nats."""
    share = torch.nn.functional.one_hot(classes, 10).double().mean(0)
    return float(torch.special.entr(share).sum(-1).mean())


def row(name: str, right: torch.Tensor) -> dict:
    share = float(right.double().mean())
    low, high = interval(share, len(right) if right.ndim == 1 else right.shape[1])
    return {"method": name, "right": round(share, 4), "low": round(low, 3), "high": round(high, 3)}


def measure(bundle, name: str, data: dict, n: int, network) -> tuple[list[dict], dict]:
    x, labels, train, train_labels = data["x"], data["y"], data["train"], data["train_y"]
    seen = observed(MASKS[name], (1, 28, 28), len(x), seed=1)

    def reads(images: torch.Tensor) -> torch.Tensor:
        return features_and_classes(network, images)[1].argmax(1)

    def fill(content: torch.Tensor) -> torch.Tensor:
        return reads(torch.where(seen, x, content)) == labels

    schedule = Schedule()
    calls = schedule.num_steps * schedule.resampling + 1 + schedule.corrected * (schedule.num_corrections + 1)
    cpu, wall = time.process_time(), time.perf_counter()
    found = inpaint(bundle, x, seen, n=n, seed=0)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    classes = reads(found.images.flatten(0, 1)).reshape(n, -1)
    near = nearest(x, seen, train, NEIGHBOURS)
    missing = (~seen).flatten(1).float()
    real = train[near.T].flatten(2) * missing
    times = 2
    x2, seen2 = x.repeat(times, 1, 1, 1), seen.repeat(times, 1, 1, 1)
    again = repaint(bundle, x2, seen2, REPAINT_CALLS, 0)
    drawn = torch.where(seen2, x2, mixture(bundle, x2, seen2, 0))
    rows = [
        row("ours, first of the ranking", classes[0] == labels),
        row("ours, mean over completions", classes == labels),
        row("the mixture's draw alone", (reads(drawn) == labels.repeat(times)).reshape(times, -1)),
        row(f"RePaint, {REPAINT_CALLS} calls", (reads(again) == labels.repeat(times)).reshape(times, -1)),
        row("1-NN fill, 5,000 digits", fill(train[nearest(x, seen, train[:5000], 1)[:, 0]])),
        row("1-NN fill, 60,000 digits", fill(train[near[:, 0]])),
        row("biharmonic", reads(biharmonic(x, seen)) == labels),
        row("mean fill", fill(train[:5000].mean(0))),
        row("the untouched digit", reads(x) == labels),
    ]
    ours, theirs = float(spread(found.images.flatten(2)).mean()), float(spread(real).mean())
    variety = {
        "ours": round(ours, 2),
        "real": round(theirs, 2),
        "ratio": round(ours / theirs, 3),
        "classes, ours": round(entropy(classes), 3),
        "classes, real": round(entropy(train_labels[near.T]), 3),
        "cpu seconds": round(cpu, 1),
        "wall seconds": round(wall, 1),
        "completions": n * len(x),
        "calls": calls,
        "threads": torch.get_num_threads(),
    }
    return [{"mask": name, **r} for r in rows], {"mask": name, **variety}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("-n", type=int, default=8)
    parser.add_argument("--masks", nargs="+", choices=MASKS, default=list(MASKS))
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="append each row to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bundle, network, stored = thalweg.load(args.run), load_digit_network(), np.load(args.data / "mnist.npz")
    part, first = ("train", HELD_OUT) if args.held_out else ("test", FIRST)
    chosen = slice(first, first + args.images)
    train = slice(0, HELD_OUT) if args.held_out else slice(None)
    data = {
        "x": torch.from_numpy(stored[f"x_{part}"][chosen]).float()[:, None] / 255,
        "y": torch.from_numpy(stored[f"y_{part}"][chosen].astype(np.int64)),
        "train": torch.from_numpy(stored["x_train"][train]).float()[:, None] / 255,
        "train_y": torch.from_numpy(stored["y_train"][train].astype(np.int64)),
    }
    rows, varieties = [], []
    for name in args.masks:
        found, variety = measure(bundle, name, data, args.n, network)
        rows += found
        varieties.append(variety)
        for r in [*found, variety]:
            print(json.dumps(r), flush=True)
            if args.json:
                with args.json.open("a") as file:
                    file.write(json.dumps(r) + "\n")
    print(f"\n{args.images} {part} digits from row {first} on\n{'':<30}" + "".join(f"{m:>24}" for m in args.masks))
    for method in dict.fromkeys(r["method"] for r in rows):
        mine = [r for r in rows if r["method"] == method]
        print(f"{method:<30}" + "".join(f"{r['right']:>10.3f} ({r['low']:.3f}-{r['high']:.3f})" for r in mine))
    for key in ("ours", "real", "ratio", "classes, ours", "classes, real", "cpu seconds", "wall seconds"):
        print(f"{'variety: ' + key if 'seconds' not in key else key:<30}" + "".join(f"{v[key]:>24}" for v in varieties))


if __name__ == "__main__":
    main()
