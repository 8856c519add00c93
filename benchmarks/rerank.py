"""Re-ranking a generator's digits: what each way of choosing keeps, in figures and pictures.

A small DDPM with plenty of faults:

    python examples/train_ddpm.py train ddpm --data DATA/mnist.npz --minutes 30
    python examples/train_ddpm.py sample ddpm own.npy -n 4000 --steps 10 --seed 1          # to learn the ratio from
    python examples/train_ddpm.py sample ddpm candidates.npy -n 16000 --steps 10 --seed 2  # to choose from
    python benchmarks/rerank.py own.npy candidates.npy --data DATA --bundle RUN --pictures docs/pictures

The ten-minute energy, whose draws are hard to tell from digits:

    thalweg train mnist --data DATA/mnist.npz --steps 2256 --seed 0 -o RUN
    thalweg sample RUN -n 5000 --seed 1 --npy draws.npy
    python benchmarks/rerank.py draws.npy[:1000] draws.npy[1000:] --data DATA --real 5000 --keep 400
    python benchmarks/rerank.py draws.npy[:4000] draws.npy[4000:] --data DATA --real 12000 --keep 200

Of N candidates `--keep` are kept, or 1 of each 16. The digit network (LeNet) is measure and oracle, and no part of any
other row. Reference: official test digits from row 2,000 on, as many as are kept. `--settle` takes the last 10,000
training digits in their place, which neither the DDPM nor the ratio has seen; the settings were chosen with them, on
other candidates. `--seed` trains another ratio.
"""

import argparse
import json
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

import thalweg
from thalweg.apps.rerank import selection
from thalweg.apps.rerank.candidates import as_candidates
from thalweg.apps.rerank.reranker import EnergyReranker
from thalweg.apps.rerank.selection import Variety
from thalweg.apps.rerank.settings import RatioSettings
from thalweg.core.rng import generator
from thalweg.evaluate.digit_network import features_and_classes, load_digit_network
from thalweg.evaluate.pictures import BLUE, GREY, ORANGE, grid, png
from thalweg.evaluate.samples import class_entropy, frechet, nearest, neighbourhoods

KEPT: Variety = "maximal_marginal_relevance"
FIRST, GROUP, SIZES = 2000, 16, (1, 2, 4, 8, 16)


def digits(data: Path, part: str) -> Tensor:
    """(N, 1, 28, 28) in [0, 1]."""
    with np.load(data / "mnist.npz") as file:
        return torch.from_numpy(file[part]).float()[:, None] / 255


def images(paths: list[str]) -> Tensor:
    """The images of some files, one after the other; PATH[a:b] takes some of the rows."""
    found = []
    for path in paths:
        name, _, rows = path.removesuffix("]").partition("[")
        low, _, high = rows.partition(":")
        x = as_candidates(np.load(name))
        found.append(x[int(low or 0) : int(high or len(x))])
    return torch.cat(found)


class Measure:
    """The digit network's view of all candidates, taken once, and the figures of any choice among them."""

    def __init__(self, x: Tensor, reference: Tensor):
        network = load_digit_network()
        self.features, p = features_and_classes(network, x)
        self.confidence, self.classes = p.max(1)
        self.reference = features_and_classes(network, reference)[0]

    def __call__(self, chosen: Tensor) -> dict[str, float]:
        """Figures of the kept set."""
        near = neighbourhoods(self.features[chosen], self.reference[: len(chosen)])
        return {
            "confidence": self.confidence[chosen].mean().item(),
            "confident": (self.confidence[chosen] > 0.9).float().mean().item(),
            "frechet": frechet(self.features[chosen], self.reference[: len(chosen)]),
            "coverage": near["coverage"],
            "recall": near["recall"],
            "entropy": class_entropy(self.classes[chosen]),
        }


def energies(x: Tensor, train: Tensor, reranker: EnergyReranker, bundle: str | None) -> dict[str, Tensor]:
    """An energy of every candidate by each energy that is no oracle."""
    found = {
        "1-NN distance to 5,000 training digits": nearest(x, train[:5000])[0],
        "likelihood ratio": reranker.energies(x),
    }
    if bundle is not None:
        found["raw energy, -log p by score matching"] = thalweg.load(bundle).energy(x)
    return found


def choices(
    x: Tensor, u: dict[str, Tensor], measure: Measure, reranker: EnergyReranker, keep: int | None
) -> dict[str, Tensor]:
    """What each way keeps: `keep` of all, or 1 of each group and as many of all."""
    found = {}
    if keep is None:
        keep = len(x) // GROUP
        found["random"] = torch.arange(0, len(x), GROUP)
        oracle = selection.best_of_groups(-measure.confidence, GROUP)
        found["oracle: the digit network's confidence, best of each group"] = oracle
        found |= {f"{name}, best of each group": selection.best_of_groups(v, GROUP) for name, v in u.items()}
    else:
        found["random"] = torch.arange(keep)
    found["oracle: the digit network's confidence, best of all"] = selection.best(-measure.confidence, keep)
    for variety in get_args(Variety):
        reranker.variety = variety
        found[f"likelihood ratio, {variety}"] = reranker.rank(x, keep)
        found[f"likelihood ratio, {variety}, forced"] = reranker.rank(x, keep, force=True)
    reranker.variety = KEPT
    return found


def table(found: dict[str, Tensor], measure: Measure) -> list[dict]:
    """One row a way of choosing, with the share of the oracle's gain and the changes against a random choice."""
    rows = [{"choice": name, **measure(chosen)} for name, chosen in found.items()]
    random, oracle = rows[0], next(row for row in rows if row["choice"].startswith("oracle"))
    for row in rows:
        for name in ("confidence", "confident"):
            row[f"gain of {name}"] = (row[name] - random[name]) / (oracle[name] - random[name])
        for name in ("frechet", "coverage"):
            row[f"change of {name}"] = row[name] / random[name] - 1
    return rows


def show(rows: list[dict]) -> str:
    """The table as Markdown."""
    head = (
        "| choice | confidence | share of the oracle's gain | > 0.9 | share of gain | Fréchet | against random | "
        "coverage | against random | recall | class entropy |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    lines = [
        f"| {r['choice']} | {r['confidence']:.4f} | {100 * r['gain of confidence']:.0f} % | {r['confident']:.3f} | "
        f"{100 * r['gain of confident']:.0f} % | {r['frechet']:.1f} | {100 * r['change of frechet']:+.0f} % | "
        f"{r['coverage']:.3f} | {100 * r['change of coverage']:+.1f} % | {r['recall']:.3f} | {r['entropy']:.3f} |"
        for r in rows
    ]
    return "\n".join([head, *lines])


def curves(u: dict[str, Tensor], measure: Measure) -> dict[str, list[dict[str, float]]]:
    """Figures of best-of-N for N = 1, 2, 4, 8, 16: the first N of each group of 16."""
    energies = {"oracle": -measure.confidence, **u}
    found: dict[str, list[dict[str, float]]] = {}
    for name, v in energies.items():
        groups = v[: len(v) // GROUP * GROUP].view(-1, GROUP)
        starts = torch.arange(len(groups)) * GROUP
        found[name] = [measure(starts + groups[:, :n].argmin(1)) for n in SIZES]
    return found


def draw(found: dict[str, list[dict[str, float]]]) -> bytes:
    """Mean confidence and Fréchet distance against N."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    styles = {"oracle": (GREY, "--", "s"), "likelihood ratio": (BLUE, "-", "o")}
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("confidence", "frechet"),
        ("mean confidence of the digit network", "Fréchet distance"),
        strict=True,
    ):
        for name, points in found.items():
            color, line, marker = styles.get(
                name, (ORANGE, "-" if "raw" in name else ":", "^" if "raw" in name else "v")
            )
            axes.plot(SIZES, [p[key] for p in points], line, color=color, marker=marker, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(SIZES, [str(n) for n in SIZES])
        axes.set_xlabel("N, candidates a kept one is the best of")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[1].legend(frameon=False, fontsize=8, loc="lower left")
    return png(figure)


def overhead(x: Tensor, reranker: EnergyReranker, seconds: float | None, keep: int | None) -> dict[str, float | None]:
    """CPU seconds of ranking with variety, and as a share of the generation's."""
    start = time.process_time()
    reranker.rank(x, keep or len(x) // GROUP)
    used = time.process_time() - start
    return {
        "ranking, CPU seconds": used,
        "generation, CPU seconds": seconds,
        "overhead": used / seconds if seconds else None,
    }


def oddities(x: Tensor, reranker: EnergyReranker) -> dict[str, dict[str, int]]:
    """How many of the candidates rank before images that are neither data nor draws, with and without
    the term of `apps.rerank.extrapolation_penalty`; and how many of the candidates it concerns.
    """
    odd = {name: torch.full((1, *x.shape[1:]), v) for name, v in (("black", 0.0), ("grey", 0.5), ("white", 1.0))}
    odd["noise"] = torch.rand(1, *x.shape[1:], generator=generator(0, "noise"))
    energy = reranker.energy
    price, found, seen = energy.price.clone(), {}, {}
    for way, p in (("without", torch.zeros(())), ("with", price)):
        energy.price.copy_(p)
        seen[way] = reranker.energies(x)
        found[way] = {name: int((seen[way] < reranker.energies(y)).sum()) for name, y in odd.items()}
    return {**found, "candidates": {"all": len(x), "changed": int((seen["with"] != seen["without"]).sum())}}


def main() -> None:
    """Read the command line, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "own", help="the generator's draws to learn the ratio from (.npy or .npy[a:b]), or a saved re-ranker"
    )
    parser.add_argument("candidates", nargs="+", help="files of candidates (.npy or .npy[a:b])")
    parser.add_argument("--data", type=Path, required=True, help="folder with mnist.npz")
    parser.add_argument("--real", type=int, default=12_000, help="training digits to learn the ratio from")
    parser.add_argument("--keep", type=int, help="how many to keep of all; 1 of each 16 if not given")
    parser.add_argument("--bundle", help="a run of dual score matching, for the row of raw energies")
    parser.add_argument("--settle", action="store_true", help="measure against held-out training digits")
    parser.add_argument("--settings", default="{}", help="JSON: changes of RatioSettings")
    parser.add_argument("--seed", type=int, default=0, help="of the ratio's training")
    parser.add_argument("--save", type=Path, help="folder to keep the fitted re-ranker in")
    parser.add_argument("--pictures", type=Path)
    args = parser.parse_args()
    train, x = digits(args.data, "x_train"), images(args.candidates)
    x = x if args.keep else x[: len(x) // GROUP * GROUP]
    reference = train[-10_000:] if args.settle else digits(args.data, "x_test")[FIRST:]
    train, start = train[:-10_000], time.process_time()
    if Path(args.own).is_dir():
        reranker = thalweg.load(args.own)
    else:
        settings = RatioSettings(**json.loads(args.settings))
        reranker = EnergyReranker(settings=settings, seed=args.seed).fit(train[: args.real], images([args.own]))
        print(f"fitted in {time.process_time() - start:.0f} CPU seconds")
    if args.save:
        reranker.save_pretrained(args.save)
    print(reranker.check_)
    measure = Measure(x, reference)
    u = energies(x, train, reranker, args.bundle)
    found = choices(x, u, measure, reranker, args.keep)
    print(show(table(found, measure)))
    stamps = [Path(path).with_suffix(".seconds") for path in args.candidates]
    seconds = sum(float(s.read_text()) for s in stamps) if all(s.exists() for s in stamps) else None
    print(json.dumps(overhead(x, reranker, seconds, args.keep)))
    print(json.dumps(oddities(x, reranker)))
    if args.pictures and args.keep is None:
        pictures(args.pictures, x, found, curves(u, measure))


def pictures(folder: Path, x: Tensor, found: dict[str, Tensor], points: dict[str, list[dict[str, float]]]) -> None:
    """The curve, and 60 of a random choice beside 60 that were kept."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rerank-best-of-n.png").write_bytes(draw(points))
    some = torch.randperm(len(x) // GROUP, generator=generator(0, "shown"))[:60]
    for name, way in (("random", "random"), ("kept", f"likelihood ratio, {KEPT}")):
        (folder / f"rerank-{name}.png").write_bytes(grid(x[found[way][some]], columns=12))


if __name__ == "__main__":
    main()
