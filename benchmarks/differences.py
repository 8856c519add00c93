"""How near finite differences are to a double backward: the gradient of the loss in the parameters, by network.

    python benchmarks/differences.py                       # about four minutes on one core
    python benchmarks/differences.py --networks mlp unet   # some of them

Networks are measured as they begin and after a short training by the exact form. The reference is the double backward
in float64. A cell is cosine / relative error, of the median batch of `--batches`. "one random direction" is the form of
Pang et al. (2020) with a projection of the residual in float64, whose error is its variance.
"""

import argparse
import copy
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from thalweg.core.device import autocast
from thalweg.core.rng import generator
from thalweg.data.sets.mnist import Mnist
from thalweg.data.toy import two_moons
from thalweg.energy.base import Fittable
from thalweg.energy.networks.conv import ConvEnergy
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.networks.transformer import TransformerEnergy
from thalweg.energy.noise_conditional.residual import ResidualEnergy
from thalweg.energy.noise_conditional.transformer import NoiseConditionalTransformerEnergy
from thalweg.energy.noise_conditional.unet import UNetEnergy
from thalweg.objective.base import Batch
from thalweg.objective.score.dual import DualScoreMatching
from thalweg.objective.score.finite_differences import Evaluations, dot
from thalweg.objective.score.score import DenoisingScoreMatching, SlicedScoreMatching
from thalweg.sampler.base import per_row

SHAPE = (1, 28, 28)


class Convolutions(nn.Module):
    """E(x) of digits by two plain convolutions."""

    def __init__(self, activation: nn.Module, pool: nn.Module):
        super().__init__()
        first, second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.layers = nn.Sequential(first, activation, pool, second, activation, nn.Flatten(), nn.Linear(6272, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


def digits() -> Tensor:
    """The embedded digits, in [0, 1], in random order."""
    x = torch.as_tensor(Mnist().locate(None, False).x).float() / 255
    return x.reshape(-1, *SHAPE)[torch.randperm(len(x), generator=generator(0, "order"))]


def moons() -> Tensor:
    """Two moons, standardised."""
    x = two_moons(5000, generator(0, "moons")).float()
    return (x - x.mean(0)) / x.std(0)


Case = tuple[Callable[[], nn.Module], Callable[[], Tensor], Any, int]
DENOISING, DUAL = DenoisingScoreMatching(sigma=0.1), DualScoreMatching()
CASES: dict[str, Case] = {
    "mlp": (lambda: MLPEnergy(shape=(2,)), moons, DenoisingScoreMatching(sigma=0.2), 500),
    "residual": (lambda: ResidualEnergy(shape=(2,)), moons, DUAL, 500),
    "cnn": (lambda: Convolutions(nn.SiLU(), nn.AvgPool2d(2)), digits, DENOISING, 150),
    "spectral": (lambda: ConvEnergy(shape=SHAPE, channels=(16, 32)), digits, DENOISING, 60),
    "transformer": (lambda: TransformerEnergy(shape=SHAPE, width=32), digits, DENOISING, 60),
    "unet": (lambda: UNetEnergy(shape=SHAPE, widths=(16, 32), num_blocks=(1, 1)), digits, DUAL, 60),
    "dual transformer": (
        lambda: NoiseConditionalTransformerEnergy(shape=SHAPE, width=32, depth=2, num_heads=4, patch=4),
        digits,
        DUAL,
        60,
    ),
    "cnn, sliced": (lambda: Convolutions(nn.SiLU(), nn.AvgPool2d(2)), digits, SlicedScoreMatching(), 30),
    "relu": (lambda: Convolutions(nn.ReLU(), nn.AvgPool2d(2)), digits, DENOISING, 150),
    "relu, max": (lambda: Convolutions(nn.ReLU(), nn.MaxPool2d(2)), digits, DENOISING, 150),
}


def loss_of(
    objective: Any, energy: nn.Module, x: Tensor, gradient: str, number: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, metrics) of a batch, in one of the forms; the draws are the same in every precision."""
    objective = replace(objective, gradient=gradient)
    state = objective.init(energy, x, generator(0, "init"))
    drawn = objective.draw(state, Batch(x.float()), generator(0, "draw", number), 0.0)
    loss, _, metrics = objective.loss(energy, state, Batch(x), tuple(v.to(x) for v in drawn))
    return loss, metrics


def gradient_of(loss: Tensor, energy: nn.Module) -> Tensor:
    """One vector, in float64."""
    found = torch.autograd.grad(loss, list(energy.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten().double() for g in found])


def train(energy: nn.Module, objective: Any, x: Tensor, num_steps: int) -> None:
    """By the exact form, in place."""
    optimizer = torch.optim.Adam(energy.parameters(), lr=1e-3)
    for k in range(num_steps):
        rows = x[torch.randint(len(x), (32,), generator=generator(0, "rows", k))]
        optimizer.zero_grad()
        loss_of(objective, energy, rows, "double_backward", k)[0].backward()
        optimizer.step()


def random_direction(energy: nn.Module, x: Tensor, sigma: float, number: int) -> Tensor:
    """The gradient of d (v' (sigma dE/dx - eps))² / d, v a random unit vector, at denoising's positions."""
    eps = torch.randn(x.shape, generator=generator(0, "draw", number)).to(x)
    v = torch.randn(x.shape, generator=generator(0, "v", number)).to(x)
    v = v / per_row(dot(v, v).sqrt(), v)
    at, y = Evaluations(energy), x + sigma * eps
    _, (g,) = at.value_and_grads((y,))
    loss, _ = at.loss(lambda a: (y + sigma * a,), (sigma * g,), lambda slope: dot(v, slope - eps).square().mean())
    return gradient_of(loss, energy)


def cell(found: list[tuple[float, float]]) -> str:
    cosines, errors = zip(*found, strict=True)
    return f"{statistics.median(cosines):.6f} / {statistics.median(errors):.0e}"


def measure(energy: nn.Module, objective: Any, x: Tensor, num_batches: int) -> list[str]:
    """The cells of a network: float64, float32, bfloat16, the exact form in bfloat16, a random direction, and the error
    that the loss reports."""
    double, cells, told = copy.deepcopy(energy).double(), [[] for _ in range(5)], []
    for k, rows in enumerate(x[: 32 * num_batches].split(32)):
        want = gradient_of(loss_of(objective, double, rows.double(), "double_backward", k)[0], double)

        def beside(g: Tensor, want: Tensor = want) -> tuple[float, float]:
            return float(g @ want / (g.norm() * want.norm())), float((g - want).norm() / want.norm())

        exact64 = loss_of(objective, double, rows.double(), "finite_differences", k)[0]
        cells[0].append(beside(gradient_of(exact64, double)))
        loss, metrics = loss_of(objective, energy, rows, "finite_differences", k)
        cells[1].append(beside(gradient_of(loss, energy)))
        told.append(float(metrics["difference_error"]))
        for place, gradient in ((2, "finite_differences"), (3, "double_backward")):
            with autocast(rows.device, True):
                loss, _ = loss_of(objective, energy, rows, gradient, k)
            cells[place].append(beside(gradient_of(loss, energy)))
        if isinstance(objective, DenoisingScoreMatching):
            cells[4].append(beside(random_direction(double, rows.double(), objective.sigma, k)))
    return [cell(found) if found else "" for found in cells] + [f"{statistics.median(told):.0e}"]


def main() -> None:
    """Print the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--batches", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    print(
        "| network | weights | float64 | float32 | bfloat16 | exact in bfloat16 | a random direction, float64 | told |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in options.networks:
        make, rows, objective, num_steps = CASES[name]
        torch.manual_seed(0)
        energy, x = make().eval(), rows()
        if isinstance(energy, Fittable):
            energy.fit(x)
        for weights, steps in (("as begun", 0), (f"after {num_steps} steps", num_steps)):
            train(energy, objective, x, steps)
            print(f"| {name} | {weights} | {' | '.join(measure(energy, objective, x, options.batches))} |", flush=True)


if __name__ == "__main__":
    main()
