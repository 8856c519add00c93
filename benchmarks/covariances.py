"""Which Gaussian fits images best: full, stationary, with low frequencies correlated, of rank k and a sphere.

    python benchmarks/covariances.py FILE.npz --rows 500 2000 8000

Held-out bits per dimension of images (N, H, W, C) or (N, C, H, W) in [0, 1] plus noise, and the megabytes that each law
stores. The last 1,500 rows of a fixed order are held out. The full covariance is fitted up to 3,072 numbers an image.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from thalweg.core.rng import generator
from thalweg.data.catalog import as_float
from thalweg.data.files import read_array
from thalweg.energy.density.gaussian import SmoothedGaussian, SpectralGaussian
from thalweg.energy.density.stationary import StationaryGaussian
from thalweg.evaluate.likelihood import bits_per_dim

HELD_OUT, LARGEST_FULL, RANK = 1500, 3072, 366


class LowRank(SpectralGaussian):
    """Rank k and a sphere: the full law's eigenvectors, its lowest eigenvalues replaced by their mean (D² numbers)."""

    def __init__(self, full: SmoothedGaussian, k: int):
        super().__init__()
        self.dim, self.mean, self.full = full.dim, full.mean, full
        order = full.spectrum.argsort(descending=True)
        self.spectrum = full.spectrum.clone()
        self.spectrum[order[k:]] = full.spectrum[order[k:]].mean()

    def coordinates(self, x: Tensor) -> Tensor:
        """V' x of each row."""
        return self.full.coordinates(x)

    def combination(self, z: Tensor) -> Tensor:
        """V z of each row."""
        return self.full.combination(z)

    def fit(self, x: Tensor, *, t: float = 0.0) -> "LowRank":
        """It is fitted already."""
        return self


def laws(x: Tensor, shape: tuple[int, ...], t: float) -> dict[str, tuple[SpectralGaussian, float]]:
    """Name to (law, numbers stored)."""
    d = x.shape[1]
    structured = StationaryGaussian(shape).fit(x, t=t)
    plain = StationaryGaussian(shape)
    plain._chosen = lambda *_: 1.0
    plain.fit(x, t=t)
    share = (structured.choice or {}).get("share", 1.0)
    found: dict[str, tuple[SpectralGaussian, float]] = {
        f"low frequencies correlated, share {share}": (structured, 2 * d + structured.low**2),
        "stationary": (plain, 2 * d),
    }
    if d <= LARGEST_FULL:
        full = SmoothedGaussian(d).fit(x)
        found["full, Ledoit and Wolf's share"] = full, 2 * d + d * d
        found[f"rank {RANK} and a sphere"] = LowRank(full, RANK), 2 * d + d * RANK
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.03, 0.1])
    args = parser.parse_args()
    x = as_float(read_array(args.file))
    x = x.permute(0, 3, 1, 2).contiguous() if x.shape[-1] in (1, 3) else x
    x = x[torch.randperm(len(x), generator=generator(0, "order"))]
    shape, d = tuple(x.shape[1:]), x[0].numel()
    noise = torch.randn(HELD_OUT, d, generator=generator(0, "noise"))
    for n in args.rows:
        for sigma in args.sigma:
            seen = x[-HELD_OUT:].flatten(1) + sigma * noise
            for name, (law, numbers) in laws(x[:n].flatten(1), shape, sigma**2).items():
                with torch.no_grad():
                    t = seen.new_full((len(seen),), sigma**2)
                    bits = bits_per_dim(-law(seen, t)[0].double(), d).mean().item()
                row = {"rows": n, "sigma": sigma, "law": name, "bits_per_dim": round(bits, 3)}
                print(json.dumps(row | {"megabytes": round(4e-6 * numbers, 1)}), flush=True)


if __name__ == "__main__":
    main()
