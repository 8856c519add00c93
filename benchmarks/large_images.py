"""A set of images of your own: likelihood beside the Gaussian alone, the ODE's second opinion, detection, samples.

    python benchmarks/large_images.py photos.npy -o build/photos --minutes 20           # trains, then measures
    python benchmarks/large_images.py photos.npy -o build/photos                        # measures the run that is there
    python benchmarks/large_images.py photos.npy -o build/photos --out blurred.npy digits.npz --held-out test.npy --json

`photos.npy` (N, C, H, W), or whatever `thalweg train` reads. The run's own held-out rows are used unless `--held-out`
names others; neither is seen by the network or by the Gaussian. Small images take `--recipe dual-image`. Bits per
dimension are of dequantised pixels at the lowest noise level, as in `thalweg evaluate`; uniform is 8. Beside the
network stand its anchor, and, up to 3,072 numbers an image, the Gaussian of full covariance. AUROC tells held-out
images from the files of `--out`, which must have the model's shape. Samples go to OUT/samples.png, held-out images to
OUT/real.png, all figures to OUT/large_images.json. One thread: OMP_NUM_THREADS=1.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import thalweg
from thalweg.bundle.bundle import Bundle
from thalweg.bundle.dataset import data_of
from thalweg.core.rng import generator
from thalweg.data.catalog import as_float
from thalweg.data.files import read_array
from thalweg.energy.density.gaussian import SmoothedGaussian, SpectralGaussian
from thalweg.evaluate.detection import auroc, in_blocks
from thalweg.evaluate.likelihood import bits_per_dim, compare, dequantise, ode_log_prob
from thalweg.evaluate.pictures import grid

LARGEST_FULL = 3072  # numbers of an image, up to which a full covariance is fitted


def main() -> None:
    args = arguments()
    folder = Path(args.output)
    if not (folder / "config.json").exists():
        thalweg.train(args.recipe, args.data, minutes=args.minutes, steps=args.steps, out=folder, seed=args.seed)
    bundle = thalweg.load(folder)
    data = data_of(bundle)
    held_out = images(args.held_out, bundle.shape) if args.held_out else as_float(data.held_out)
    held_out = held_out[torch.randperm(len(held_out), generator=generator(args.seed, "order"))[: args.rows]]
    found: dict[str, Any] = {"shape": list(bundle.shape), "rows": len(held_out), "anchor": bundle.config.get("anchor")}
    found["training"] = bundle.config["training"]
    found |= likelihood(bundle, held_out, data.train, args)
    inside = in_blocks(bundle.energy, held_out, block=64)
    outside = {Path(f).name: images(f, bundle.shape)[: args.rows] for f in args.out}
    found["auroc"] = {name: auroc(inside, in_blocks(bundle.energy, x, block=64)) for name, x in outside.items()}
    began = time.perf_counter()
    samples = bundle.sample(args.samples, seed=args.seed).cpu()
    found["seconds_a_sample"] = (time.perf_counter() - began) / args.samples
    (folder / "samples.png").write_bytes(grid(samples, columns=8))
    (folder / "real.png").write_bytes(grid(held_out[: args.samples], columns=8))
    (folder / "large_images.json").write_text(json.dumps(found, indent=2))
    print(json.dumps(found) if args.json else table(found))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("-o", "--output", required=True, help="run folder")
    parser.add_argument("--recipe", default="dual-image-64")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--held-out", help="a file of test images")
    parser.add_argument("--out", nargs="*", default=[], help="files of other images, for detection")
    parser.add_argument("--rows", type=int, default=500, help="held-out rows, at most")
    parser.add_argument("--ode", type=int, default=8, help="rows of the ODE's opinion; 0: none")
    parser.add_argument("--ode-steps", type=int, default=24)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def images(path: str, shape: tuple[int, ...]) -> Tensor:
    """The rows of a file, floats in [0, 1]."""
    return as_float(read_array(Path(path), shape=shape))


def likelihood(bundle: Bundle, held_out: Tensor, train: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Bits per dimension of the network, its anchor and the full Gaussian; the network's log p beside the ODE's."""
    d = held_out[0].numel()
    x = dequantise(held_out, generator(args.seed, "dequantise"))
    y = bundle.encode(x).flatten(1)
    volume = (in_blocks(bundle.log_prob, x[:2], block=2) - _network(bundle, bundle.encode(x[:2]))).mean()
    bits = {"network": bits_per_dim(in_blocks(bundle.log_prob, x, block=64), d).mean().item()}
    laws: dict[str, SpectralGaussian] = {"anchor": bundle.model.anchor}
    if d <= LARGEST_FULL:
        rows = bundle.encode(as_float(train[:20_000])).flatten(1)
        laws["full_gaussian"] = SmoothedGaussian(d).fit(rows)
    for name, law in laws.items():
        log_p = torch.cat([-law(part, part.new_full((len(part),), bundle.t_min))[0] for part in y.split(64)])
        bits[name] = bits_per_dim(log_p.detach().double() + volume, d).mean().item()
    found: dict[str, Any] = {"bits_per_dim": bits}
    if args.ode:
        noise = torch.randn(y[: args.ode].shape, generator=generator(args.seed, "noise-ode"))
        at = (y[: args.ode] + math.sqrt(bundle.t_min) * noise).view(-1, *bundle.shape)
        began = time.perf_counter()
        ode = ode_log_prob(
            bundle.noisy_energy,
            at,
            t_min=bundle.t_min,
            t_max=bundle.t_max,
            prior=bundle.prior_log_prob,
            num_steps=args.ode_steps,
            seed=args.seed,
        )
        found["ode"] = compare(_network(bundle, at), ode) | {"seconds": time.perf_counter() - began}
        found["ode"]["gap_bits_per_dim"] = found["ode"]["mean_gap"] / d / math.log(2)
    return found


@torch.no_grad()
def _network(bundle: Bundle, y: Tensor) -> Tensor:
    return -bundle.noisy_energy(y, y.new_full((len(y),), bundle.t_min)).double()


def table(found: dict[str, Any]) -> str:
    """The figures as lines."""
    lines = [f"{found['rows']} held-out images of {found['shape']}, {found['training']['steps']} steps"]
    lines += [f"{name:>16}: {value:.3f} bits/dim" for name, value in found["bits_per_dim"].items()]
    if "ode" in found:
        gap = found["ode"]["gap_bits_per_dim"]
        lines.append(f"network - ODE: {gap:+.4f} bits/dim, correlation {found['ode']['correlation']:.3f}")
    lines += [f"AUROC against {name}: {value:.3f}" for name, value in found["auroc"].items()]
    return "\n".join([*lines, f"{found['seconds_a_sample']:.2f} s a sample"])


if __name__ == "__main__":
    main()
