"""How fast dual score matching trains and samples on this machine, beside plain eager code for the same network.

The plain code is that of tutorials: images (B, C, H, W), the gradient by `autograd.grad(create_graph=True)`, Adam by a
loop over the parameters, the average of the weights by another. It has the same network, noise, loss and settings,
takes turns with this package (`bench.timing`), and ends with the same weights to rounding. With one thread CPU time
counts, else wall time.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.bench.timing import Contender, in_turns, markdown, on_threads
from thalweg.core.rng import generator
from thalweg.energy.noise_conditional import unet
from thalweg.energy.noise_conditional.unet import UNetEnergy
from thalweg.objective.base import Batch
from thalweg.objective.score.dual import DualScoreMatching
from thalweg.objective.score.noise_levels import NoiseRange
from thalweg.sampler.annealed import BLOCK
from thalweg.sampler.chain import transitions
from thalweg.sampler.multistep import Multistep

BATCH, LEARNING_RATE, BETAS, DECAY, SIGMAS = 64, 2e-3, (0.9, 0.99), 1e-4, (0.03, 5.0)  # of the recipe dual-image
SAMPLER = Multistep(num_steps=20, eta=4.0, rho=5.0)
WORK = ("training", "sampling")
PLAIN, OURS = "plain eager", "thalweg"
Step = Callable[[int], Tensor]


class DualRow(NamedTuple):
    """One contender: ms and CPU-ms of an update or of 1,000 samples, a rate, its time over that of `OURS`."""

    work: str
    threads: int
    name: str
    ms: float
    cpu_ms: float
    rate: float
    ratio: float


class Plain:
    """U(y, t) by autograd alone and with the library's own activation: the network without this package's care."""

    def __init__(self, energy: UNetEnergy):
        self.energy = energy
        self.t_min, self.t_max = energy.t_min, energy.t_max

    def __call__(self, y: Tensor, t: Tensor) -> Tensor:
        own, unet.silu = unet.silu, F.silu
        try:
            return self.energy(y, t)
        finally:
            unet.silu = own


def energy_of(shape: tuple[int, int, int] = (1, 28, 28), seed: int = 0, **more: Any) -> UNetEnergy:
    """The recipe's network as it is after some training: no weight is zero any more."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        energy = UNetEnergy(shape=shape, sigma_min=SIGMAS[0], sigma_max=SIGMAS[1], **more)
        for p in energy.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.02)
    return energy


def objective() -> DualScoreMatching:
    """The recipe's."""
    return DualScoreMatching(time_weight=0.005)


def draws(energy: UNetEnergy, step: int, x: Tensor) -> tuple[Tensor, ...]:
    """The noise of a step: the same for all contenders."""
    return objective().draw(NoiseRange.of(energy), Batch(x), generator(0, "speed", step, device=x.device), 0.0)


def plain_step(energy: UNetEnergy, x: Tensor) -> Step:
    """One update as a tutorial writes it; returns the loss."""
    parameters, scale, weight = list(energy.parameters()), objective().scale, objective().time_weight
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    average, plain = [p.detach().clone() for p in parameters], Plain(energy)

    def step(i: int) -> Tensor:
        t, eps = draws(energy, i, x)
        root = t.sqrt()[:, None, None, None]
        y, t = (x + root * eps).requires_grad_(True), t.requires_grad_(True)
        grad_y, grad_t = torch.autograd.grad(plain(y, t).sum(), (y, t), create_graph=True)
        d = x[0].numel()
        space = (root * grad_y - eps).pow(2).flatten(1).mean(1)
        target = (d - eps.pow(2).flatten(1).sum(1)) / 2
        loss = ((1 + t.detach() / scale**2) * space).mean() + weight * ((t.detach() * grad_t - target) ** 2 / d).mean()
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        grads = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
        norm = torch.stack([g.norm() for g in grads]).norm()
        with torch.no_grad():
            for p, g, m, v, mean in zip(parameters, grads, first, second, average, strict=True):
                g = g * (1 / (norm + 1e-6)).clamp(max=1)
                m.mul_(BETAS[0]).add_(g, alpha=1 - BETAS[0])
                v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
                corrected, size = (q / (1 - b ** (i + 1)) for q, b in zip((m, v), BETAS, strict=True))
                p.mul_(1 - LEARNING_RATE * DECAY).sub_(LEARNING_RATE * corrected / (size.sqrt() + 1e-8))
                mean.mul_(0.999).add_(p, alpha=0.001)
        return loss.detach()

    return step


def our_step(energy: UNetEnergy, x: Tensor) -> Step:
    """One update as the trainer makes it; returns the loss."""
    settings = {"lr": LEARNING_RATE, "betas": BETAS, "weight_decay": DECAY}
    optimizer = torch.optim.AdamW(energy.parameters(), fused=True, **settings)
    average, loss_of = copy.deepcopy(energy).requires_grad_(False), objective().loss

    def step(i: int) -> Tensor:
        loss, _, _ = loss_of(energy, NoiseRange.of(energy), Batch(x), draws(energy, i, x))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(energy.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(energy.parameters()), 0.001)
        return loss.detach()

    return step


def training(rows: int = BATCH, device: str = "cpu") -> dict[str, Contender]:
    """Name to a function that makes one update of a network of its own, all alike at the start."""
    energy = energy_of().to(device)
    x = torch.rand(rows, *energy.shape, generator=generator(0, "speed")).to(device)
    made = {PLAIN: plain_step(copy.deepcopy(energy), x), OURS: our_step(copy.deepcopy(energy), x)}
    counts = dict.fromkeys(made, -1)

    def update(name: str) -> Tensor:
        counts[name] += 1
        return made[name](counts[name])

    return {name: lambda name=name: update(name) for name in made}


def sampling(rows: int = BLOCK, device: str = "cpu") -> dict[str, Contender]:
    """Name to a function that takes the first step of the recipe's sampler with a block of images."""
    energy = energy_of().to(device).eval().requires_grad_(False)
    x = energy.prior(rows, generator(0, "speed", device=device))

    def one_step(of: Any) -> Tensor:  # U(y, t), which an annealed sampler takes in place of E(x)
        state, _ = next(transitions(SAMPLER, of, x, generator(1, "speed", device=device)))  # pyright: ignore[reportArgumentType]
        return state.x

    return {PLAIN: lambda: one_step(Plain(energy)), OURS: lambda: one_step(energy)}


def measure(work: str, threads: int, *, rounds: int = 5, device: str = "cpu") -> list[DualRow]:
    """Rows for "training", a batch of 64, or "sampling", 1,000 images.

    The latter are 20 steps of ten blocks, from the time of one step. Contenders take turns; the first round is not
    counted.
    """
    with on_threads(threads):
        jobs = training(device=device) if work == "training" else sampling(device=device)
        times = in_turns(jobs, rounds, threads, device)
    num_calls = 1.0 if work == "training" else (SAMPLER.num_steps + 1) * 1000 / BLOCK  # the last gradient denoises
    images = BATCH if work == "training" else 1000
    rows = []
    for name in jobs:
        wall, cpu, counted = (num_calls * seconds for seconds in times.medians(name))
        rows.append(DualRow(work, threads, name, 1e3 * wall, 1e3 * cpu, images / counted, times.ratio(name, OURS)))
    return rows


HEADER = ("work", "threads", "contender", "seconds", "CPU-seconds", "images/s", "ours is")


def table(rows: list[DualRow]) -> str:
    """The rows as a Markdown table: an update of 64 images each, and 1,000 samples."""
    found = []
    for row in rows:
        times = "-" if row.name == OURS else f"{row.ratio:.2f} x"
        numbers = (f"{row.ms / 1e3:.3g}", f"{row.cpu_ms / 1e3:.3g}", f"{row.rate:,.3g}")
        work = f"{row.work}, {'an update' if row.work == 'training' else '1,000 images'}"
        found.append((work, str(row.threads), row.name, *numbers, times))
    return markdown(HEADER, found, 3)
