"""One digit held out: the AUPR and AUROC of finding it among the other nine, by an energy that never saw it.

    python benchmarks/holdout_digits.py --data FOLDER                       # FOLDER holds mnist.npz
    python benchmarks/holdout_digits.py --data FOLDER --protocol resplit

Two protocols are found in papers, and their figures do not compare:

- `official`: train on the official training split without the digit, score the 10,000 official test images (Yoon et al.
  2021, 2023);
- `resplit`: shuffle all 70,000 images, train on 80 % without the digit, score the other 20 % (Zenati et al. 2018).
  `resplit, all of the digit` scores the digit's images of both parts beside the normal ones of the 20 % (as in the code
  of Kumar et al. 2019): a share of anomalies three times as large, which raises every row, chance with it.

Nothing is chosen here. Labels decide which images are left out and, at the very end, what is counted; no method is told
one. Every table has the chance row (the share of anomalies), 1-nearest-neighbour in pixels, and an auto-encoder's
reconstruction error.
"""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from thalweg.apps.anomaly.image.image_energy import ImageEnergy
from thalweg.core.rng import generator
from thalweg.energy.networks.autoencoder import AutoencoderEnergy


class Task(NamedTuple):
    """Images uint8 (N, 28, 28): what to train on, what to score, which of the latter are anomalies, and by table name
    which of them count.
    """

    train: np.ndarray
    test: np.ndarray
    anomalous: np.ndarray
    counted: dict[str, np.ndarray]


def task(folder: Path, digit: int, protocol: str, limit: int | None) -> Task:
    with np.load(folder / "mnist.npz") as file:
        x, y, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    counted = {protocol: np.ones(len(y_test), bool)}
    if protocol == "resplit":
        x, y = np.concatenate([x, x_test]), np.concatenate([y, y_test])
        order = torch.randperm(len(x), generator=generator(0, "resplit")).numpy()
        cut = len(x) * 4 // 5
        (x, y), (x_test, y_test) = ((x[part], y[part]) for part in (order[:cut], order[cut:]))
        num = len(y_test)
        x_test, y_test = np.concatenate([x_test, x[y == digit]]), np.concatenate([y_test, y[y == digit]])
        counted = {"resplit": np.arange(len(y_test)) < num, "resplit, all of the digit": np.ones(len(y_test), bool)}
    train = x[y != digit]
    chosen = torch.randperm(len(train), generator=generator(0, "limit"))[: limit or len(train)].numpy()
    return Task(train[chosen], x_test, y_test == digit, counted)


def nearest(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The Euclidean distance to the nearest training image."""
    a, b = (torch.from_numpy(x).flatten(1).float() / 255 for x in (train, test))
    return torch.cat([torch.cdist(part, a).amin(1) for part in b.split(256)]).numpy()


def autoencoder(t: Task, seed: int, steps: int = 2000) -> np.ndarray:
    """|x - D(f(x))|² of an auto-encoder with 32 features that learned to reconstruct and nothing else."""
    torch.manual_seed(seed)
    net = AutoencoderEnergy(shape=(1, 28, 28), widths=(512, 256, 32))
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    train, test = (torch.from_numpy(x)[:, None].float() / 255 for x in (t.train, t.test))
    draws = generator(seed, "autoencoder")
    for _ in range(steps):
        x = train[torch.randint(len(train), (256,), generator=draws)]
        loss = (net.restore(x) - x).square().sum((1, 2, 3)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return torch.cat([(net.restore(x) - x).square().sum((1, 2, 3)) for x in test.split(512)]).numpy()


def row(name: str, energies: np.ndarray, t: Task, seconds: float = 0.0) -> list[dict]:
    """The figures of one method, in each table."""
    rows = []
    for table, counted in t.counted.items():
        truth, e = t.anomalous[counted], energies[counted]
        figures = {"aupr": average_precision_score(truth, e), "auroc": roc_auc_score(truth, e)}
        rows.append({"table": table, "method": name, **figures, "cpu_s": round(seconds, 1)})
    return rows


def measure(t: Task, seed: int, steps: int | None, baselines: bool) -> tuple[list[dict], ImageEnergy, np.ndarray]:
    """The rows of one digit and seed; the detector and its energies, for the picture."""
    rows, clock = [], time.process_time
    if baselines:
        rows += row("chance", np.zeros(len(t.test)), t)
        start = clock()
        rows += row("1-nearest-neighbour", nearest(t.train, t.test), t, clock() - start)
        start = clock()
        rows += row("auto-encoder", autoencoder(t, seed), t, clock() - start)
    start = clock()
    found = ImageEnergy(steps=steps).fit(t.train, seed=seed)
    energies = found.energy(t.test)
    seconds = clock() - start
    for name, part in found.parts(t.test).items():
        rows += row(f"its {name} alone", part, t)
    rows += row("ImageEnergy", energies, t, seconds)
    return rows, found, energies


def draw(panels: dict[int, tuple[ImageEnergy, Task, np.ndarray]], path: Path, num: int = 5) -> None:
    """For each digit: the normal images of highest energy, the anomalies found and those missed (lowest energy), with
    the map of the energy's slope and the repair below each.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        3 * len(panels), 3 * num, figsize=(0.62 * 3 * num, 0.66 * 3 * len(panels)), squeeze=False
    )
    for block, (digit, (found, t, energies)) in enumerate(panels.items()):
        normal, odd = (np.flatnonzero(t.anomalous == flag) for flag in (False, True))
        normal, odd = normal[np.argsort(-energies[normal])], odd[np.argsort(-energies[odd])]
        titles = ("normal, highest energy", f"{digit} (held out), highest", f"{digit} (held out), lowest: missed")
        rows = np.concatenate([normal[:num], odd[:num], odd[::-1][:num]])
        x = t.test[rows]
        for line, images in enumerate((x, found.attribution(x), found.repair(x.astype(np.float32) / 255))):
            for i, image in enumerate(images):
                ax = axes[3 * block + line, i]
                ax.imshow(image, cmap="magma" if line == 1 else "gray")
                if line == 0 and i % num == num // 2:
                    ax.set_title(titles[i // num], fontsize=7)
                if i == 0:
                    ax.set_ylabel(("image", "|dE/dx|", "repair")[line], fontsize=7)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)


def summary(rows: list[dict]) -> None:
    """A table for each way to count, a line a method: the digits' AUPR, then means of AUPR, AUROC and CPU seconds."""
    digits = sorted({r["digit"] for r in rows})
    for table in dict.fromkeys(r["table"] for r in rows):
        here = [r for r in rows if r["table"] == table]
        print(
            f"\n{table}, AUPR\n{'':<24}" + "".join(f"{d:>8}" for d in digits) + f"{'mean':>8}{'AUROC':>8}{'CPU s':>8}"
        )
        for name in dict.fromkeys(r["method"] for r in here):
            mine = [r for r in here if r["method"] == name]
            by_digit = [np.mean([r["aupr"] for r in mine if r["digit"] == d]) for d in digits]
            auroc, cpu = (np.mean([r[key] for r in mine]) for key in ("auroc", "cpu_s"))
            print(f"{name:<30}{''.join(f'{v:8.3f}' for v in [*by_digit, np.mean(by_digit), auroc])}{cpu:8.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--digits", type=int, nargs="+", default=[1, 4, 5, 7, 9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--protocol", choices=["official", "resplit"], default="official")
    parser.add_argument("--steps", type=int, help="training steps, for a quick look")
    parser.add_argument("--limit", type=int, help="training images, for a quick look")
    parser.add_argument("--json", type=Path, help="append each row to this file")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    rows, panels = [], {}
    for digit in args.digits:
        t = task(args.data, digit, args.protocol, args.limit)
        for seed in args.seeds:
            found_rows, found, energies = measure(t, seed, args.steps, baselines=seed == args.seeds[0])
            panels.setdefault(digit, (found, t, energies))
            for r in found_rows:
                r = {"digit": digit, "seed": seed, **r}
                rows.append(r)
                print(json.dumps(r), flush=True)
                if args.json:
                    with args.json.open("a") as file:
                        file.write(json.dumps(r) + "\n")
    summary(rows)
    if args.picture:
        draw(panels, args.picture)


if __name__ == "__main__":
    main()
