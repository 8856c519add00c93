"""What a joint energy of digits is worth as a classifier, beside the same network trained plainly.

    thalweg train mnist --recipe jem --data FOLDER/mnist.npz -o RUN
    thalweg train mnist --recipe jem --data FOLDER/mnist.npz -o PLAIN --steps (as many as RUN's) \\
        objective.weight=0 objective.noisy_weight=0 objective.radius=0
    python benchmarks/classify.py RUN --plain PLAIN --data FOLDER       # FOLDER holds mnist.npz and fashion_mnist.npz

PLAIN is the same classifier under the same augmentation, schedule and average, for the same updates, by cross-entropy
alone. Accuracy, calibration and AUROC are of the official test images from row 2,000 on (earlier ones were looked at
before); `--held-out` takes the rows that RUN held out instead, for choosing settings. The attack is projected gradient
ascent of the cross-entropy through the calibrated logits (Madry et al. 2018): l-inf ball of 0.1, 40 steps of 0.01,
random start, pixels in [0, 1]; then a longer one with restarts, one that transfers from the other network, and one
that asks for energies only.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import thalweg
from thalweg.bundle.bundle import Bundle
from thalweg.core.rng import generator
from thalweg.data.catalog import as_float
from thalweg.data.catalog import load as load_data
from thalweg.data.options import DataOptions
from thalweg.energy.base import marginal
from thalweg.evaluate.calibration import Reliability, reliability
from thalweg.evaluate.detection import auroc, fpr95
from thalweg.evaluate.digit_network import features_and_classes, load_digit_network
from thalweg.evaluate.pictures import grid
from thalweg.evaluate.samples import nearest, neighbourhoods

RADIUS, STEP = 0.1, 0.01
FIRST_TEST_ROW = 2000
Logits = Callable[[Tensor], Tensor]


def read(folder: Path, name: str, part: str) -> tuple[Tensor, Tensor]:
    with np.load(folder / f"{name}.npz") as file:
        x, y = file[f"x_{part}"], file[f"y_{part}"]
    return torch.from_numpy(x)[:, None].float() / 255, torch.from_numpy(y.astype(np.int64))


def in_blocks(f: Callable[[Tensor], Tensor], x: Tensor, size: int = 250) -> Tensor:
    with torch.no_grad():
        return torch.cat([f(part) for part in x.split(size)])


def attack(logits: Logits, x: Tensor, y: Tensor, *, steps: int, restarts: int = 1) -> Tensor:
    """x moved within the ball so that y is read worst; of several restarts, one that fools the network if any does."""
    found = []
    for k, (part, labels) in enumerate(zip(x.split(250), y.split(250), strict=True)):
        best = part.clone()
        for restart in range(restarts):
            draws = generator(0, f"attack-{restart}", k)
            z = (part + RADIUS * (2 * torch.rand(part.shape, generator=draws) - 1)).clamp(0, 1)
            for _ in range(steps):
                z.requires_grad_(True)
                (g,) = torch.autograd.grad(F.cross_entropy(logits(z), labels, reduction="sum"), z)
                z = z.detach() + STEP * g.sign()
                z = torch.minimum(torch.maximum(z, part - RADIUS), part + RADIUS).clamp(0, 1)
            with torch.no_grad():
                fooled = logits(z).argmax(1) != labels
            best = torch.where(fooled[:, None, None, None] | (restart == 0), z, best)
        found.append(best)
    return torch.cat(found)


def square(logits: Logits, x: Tensor, y: Tensor, *, queries: int) -> Tensor:
    """Without gradients: random squares of +-radius, kept where the margin falls (after Andriushchenko et al. 2020)."""

    def margin(z: Tensor) -> Tensor:
        f = in_blocks(logits, z)
        right = f.gather(1, y[:, None])
        return (right - f.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)).squeeze(1)

    draws, n, side = generator(0, "square"), len(x), x.shape[-1]
    stripes = 2 * torch.randint(0, 2, (n, 1, 1, side), generator=draws).float() - 1
    z = (x + RADIUS * stripes).clamp(0, 1)
    best = margin(z)
    for i in range(queries):
        size = max(2, round(side * 0.5 * (1 - i / queries)))
        top, left = (torch.randint(0, side - size + 1, (n,), generator=draws) for _ in range(2))
        at = torch.arange(side)
        rows = (at >= top[:, None]) & (at < top[:, None] + size)
        columns = (at >= left[:, None]) & (at < left[:, None] + size)
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]
        sign = 2 * torch.randint(0, 2, (n, 1, 1, 1), generator=draws).float() - 1
        trial = torch.where(inside, (x + RADIUS * sign).clamp(0, 1), z)
        found = margin(trial)
        better = found < best
        z, best = torch.where(better[:, None, None, None], trial, z), torch.minimum(best, found)
    return z


def share_right(logits: Logits, x: Tensor, y: Tensor) -> float:
    return float((in_blocks(logits, x).argmax(1) == y).double().mean())


def classified(name: str, scores: Tensor, y: Tensor) -> tuple[dict, Reliability]:
    """One line of the first table."""
    found = reliability(scores.double().softmax(1), y)
    right = float((scores.argmax(1) == y).double().mean())
    nats = float(F.cross_entropy(scores.double(), y))
    return {"classifier": name, "accuracy": right, "ece": found.error, "nll": nats}, found


def attacks(nets: dict[str, Logits], x: Tensor, y: Tensor, num_hard: int) -> list[dict]:
    """Accuracy of each network under each attack, on the same rows."""
    rows, moved = [], {}
    for name, logits in nets.items():
        z = moved[name] = attack(logits, x, y, steps=40)
        few, labels = x[:num_hard], y[:num_hard]
        noise = (x + RADIUS * (2 * torch.randint(0, 2, x.shape, generator=generator(0, "signs")) - 1)).clamp(0, 1)
        row = {"classifier": name, "clean": share_right(logits, x, y), "random signs": share_right(logits, noise, y)}
        row |= {"PGD 40": share_right(logits, z, y)}
        hard = attack(logits, few, labels, steps=100, restarts=3)
        row |= {f"PGD 40, first {num_hard}": share_right(logits, z[:num_hard], labels)}
        row |= {f"PGD 100 x 3, first {num_hard}": share_right(logits, hard, labels)}
        row |= {f"squares 300, first {num_hard}": share_right(logits, square(logits, few, labels, queries=300), labels)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    for row, logits in zip(rows, nets.values(), strict=True):
        other = next(name for name in nets if name != row["classifier"])
        row["from the other"] = share_right(logits, moved[other], y)
    return rows


def detected(scores: dict[str, Logits], x: Tensor, outs: dict[str, Tensor]) -> list[dict]:
    rows = []
    for name, score in scores.items():
        inside = in_blocks(score, x).double()
        for out, z in outs.items():
            u = in_blocks(score, z).double()
            rows.append({"score": name, "out": out, "auroc": auroc(inside, u), "fpr95": fpr95(inside, u)})
    return rows


def sampled(x: Tensor, asked: Tensor, real: Tensor, real_labels: Tensor, name: str) -> dict:
    """Are images of the class that was asked for, and as varied as that class is?"""
    network = load_digit_network()
    features, p = features_and_classes(network, x)
    reference, _ = features_and_classes(network, real)
    read = p.argmax(1)
    spread = [float(x[asked == k].var(0).sum() / real[real_labels == k].var(0).sum()) for k in range(10)]
    inside = neighbourhoods(features, reference)
    return {
        "images": name,
        "read as asked": float((read == asked).double().mean()),
        "and with p > 0.9": float(((read == asked) & (p.amax(1) > 0.9)).double().mean()),
        "coverage": inside["coverage"],
        "density": inside["density"],
        "variance over real": float(np.mean(spread)),
        "least of a class": min(spread),
    }


def draw_reliability(found: dict[str, Reliability], path: Path) -> None:
    """Share right over confidence, and how many rows lie in each bin."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, (name, r) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        some = r.num > 0
        ax.plot([0, 1], [0, 1], color="#7a8490", linewidth=0.8, linestyle=":")
        error = 2 * (r.accuracy * (1 - r.accuracy) / r.num).sqrt()
        ax.errorbar(r.confidence[some], r.accuracy[some], error[some], fmt="o", color="#2563a8", markersize=4)
        for c, a, n in zip(r.confidence[some], r.accuracy[some], r.num[some], strict=True):
            ax.annotate(f"{int(n)}", (float(c), float(a)), xytext=(3, -10), textcoords="offset points", fontsize=6)
        ax.set_title(f"{name}\nexpected calibration error {100 * r.error:.2f} %", fontsize=9)
        ax.set_xlabel("confidence")
        ax.set_xlim(0, 1.02)
        ax.set_ylim(-0.02, 1.05)
        ax.grid(alpha=0.25)
    figure.axes[0].set_ylabel("share right")
    figure.savefig(path, dpi=110, facecolor="white")


def table(rows: list[dict]) -> None:
    names = list(rows[0])
    print("\n| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for row in rows:
        print("| " + " | ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")


def raw(bundle: Bundle) -> Logits:
    """The logits before temperature scaling."""
    beta = float(bundle.model.inverse_temperature)
    return lambda x: bundle.model.logits(x) / beta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--plain", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", action="store_true", help="rows that RUN held out, in place of test images")
    parser.add_argument("--rows", type=int, default=1000, help="images to attack")
    parser.add_argument("--hard", type=int, default=200, help="of which to attack longer")
    parser.add_argument("--outside-rows", type=int, default=8000, help="images of each set to tell apart")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--strength", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--only", nargs="+", default=["classes", "attacks", "outside", "samples"])
    parser.add_argument("--pictures", type=Path, help="folder for the reliability diagram and the samples")
    args = parser.parse_args()
    joint, plain = thalweg.load(args.run), thalweg.load(args.plain)
    steps = [bundle.config["training"]["steps"] for bundle in (joint, plain)]
    print(f"updates: {steps[0]} and, plainly, {steps[1]}")
    x, y = read(args.data, "mnist", "test")
    x, y = x[FIRST_TEST_ROW:], y[FIRST_TEST_ROW:]
    spec = joint.config["run"]["data"]
    data = load_data(spec["name"], DataOptions(path=spec["path"]), seed=joint.config["run"]["seed"])
    if args.held_out:
        x, y = as_float(data.held_out), data.held_out_labels
        assert y is not None
    if "classes" in args.only:
        lines = [
            classified("chance", torch.zeros(len(y), 10), y),
            classified("plain", in_blocks(raw(plain), x), y),
            classified("plain, temperature-scaled", in_blocks(plain.model.logits, x), y),
            classified("joint energy, unscaled", in_blocks(raw(joint), x), y),
            classified("joint energy", in_blocks(joint.model.logits, x), y),
        ]
        table([row for row, _ in lines])
        if args.pictures:
            shown = {row["classifier"]: r for row, r in lines if row["classifier"] != "chance"}
            shown.pop("joint energy, unscaled")
            draw_reliability(shown, args.pictures / "reliability.png")
    if "attacks" in args.only:
        nets = {"plain": plain.model.logits, "joint energy": joint.model.logits}
        table(attacks(nets, x[: args.rows], y[: args.rows], args.hard))
    if "outside" in args.only:
        digits = x[: args.outside_rows]
        outs = {
            "Fashion-MNIST": read(args.data, "fashion_mnist", "test")[0][: len(digits)],
            "inverted": 1 - digits,
            "uniform noise": torch.rand(min(2000, len(digits)), 1, 28, 28, generator=generator(0, "noise")),
        }
        train = as_float(data.train[:10_000])
        scores = {
            "E(x) of the joint energy": joint.energy,
            "1-nearest-neighbour": lambda z: nearest(z, train)[0],
            "plain, 1 - confidence": lambda z: 1 - plain.model.logits(z).softmax(1).amax(1),
            "plain, -log sum exp": lambda z: marginal(plain.model.logits(z)),
        }
        table(detected(scores, digits, outs))
    if "samples" in args.only:
        n = args.samples
        asked = torch.arange(n) % 10
        order = torch.cat([(y == k).nonzero()[: n // 10, 0] for k in range(10)])
        real, real_labels = x[order], y[order]
        mean = torch.stack([real[real_labels == k].mean(0) for k in range(10)])
        other = torch.cat([(y == k).nonzero()[n // 10 : n // 5, 0] for k in range(10)])
        rows = [
            sampled(x[other], y[other], real, real_labels, "other real images"),
            sampled(
                real[real_labels.sort(stable=True).indices[:: n // 10]][asked], asked, real, real_labels, "one a class"
            ),
            sampled(mean[asked], asked, real, real_labels, "class means"),
        ]
        for strength in args.strength:
            found = joint.sample(n, seed=1, labels=asked, strength=strength)
            rows.append(sampled(found, asked, real, real_labels, f"joint energy, strength {strength:g}"))
            if args.pictures and strength == args.strength[0]:
                (args.pictures / "classes.png").write_bytes(grid(found[:100]))
        table(rows)


if __name__ == "__main__":
    main()
