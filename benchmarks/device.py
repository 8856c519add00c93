"""Is it right on a GPU, and how fast? Within eight minutes, as the tables of docs/experiments/device.md.

    PYTHONPATH=src python benchmarks/device.py --device cuda | tee device.md     # from the repository's root
    PYTHONPATH=src python benchmarks/device.py --device cpu --quick              # in small: whether it runs

Needs torch 2.6 or later, numpy, safetensors, scikit-learn, jaxtyping, pytest and pydantic; not mlxtend, not typer.
Where a machine has no pydantic, carry the wheels of pydantic, pydantic-core, annotated-types and typing-inspection for
its Python, and install them by `pip install --no-index --no-deps`.

Each section has a budget of seconds and prints each row when it is known, so that a run that is ended loses nothing.
Parity: loss and gradient of each objective in float64, the same noise on both devices. Times: medians of turns of ten
steps that end with one wait for the device, as a training logs; memory is the most that torch had allocated.
"""

import argparse
import copy
import importlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.core.device import find_device, place, synchronise, tf32
from thalweg.core.rng import generator
from thalweg.data.loader import Loader
from thalweg.data.transform import Identity
from thalweg.energy.networks.conv import ConvEnergy
from thalweg.energy.networks.strided import StridedEnergy
from thalweg.energy.noise_conditional.unet import UNetEnergy
from thalweg.objective.base import Batch
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.objective.score.dual import DualScoreMatching
from thalweg.sampler.annealed import Heun, anneal
from thalweg.sampler.chain import run_chain
from thalweg.sampler.langevin import ULA
from thalweg.training.guard import Guard
from thalweg.training.settings import TrainSettings
from thalweg.training.step import Update, run_steps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "contract"))
contract = importlib.import_module("test_objectives")  # finds all objectives, and has a small energy for each
BUDGETS = {"parity": 60, "tests": 120, "training": 160, "chains": 80, "sampling": 40}  # seconds, 460 in all
BOUND = 1e-6
PIXELS = ULA(step_size=10.0, temperature=4.5e-5, clamp=(0.0, 1.0), clip=0.3)
Row = tuple[Any, ...]


def say(*cells: Any) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def section(title: str, *heads: str) -> None:
    print(f"\n## {title}\n", flush=True)
    if heads:
        say(*heads)
        say(*("---" for _ in heads))


def within(seconds: float, jobs: dict[str, Callable[[], Row]]) -> None:
    """A row of each job, as long as there is time; one that fails says why and ends nothing."""
    end = time.monotonic() + seconds
    for name, job in jobs.items():
        if time.monotonic() > end:
            say(name, "left out: the section's time was over")
            continue
        try:
            say(name, *job())
        except Exception as error:  # the next row may work
            say(name, f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}")


def moved(tree: Any, device: torch.device) -> Any:
    if isinstance(tree, Tensor):
        return tree if tree.ndim == 0 and tree.dtype == torch.float64 else tree.to(device)  # levels stay on the CPU
    parts = [moved(part, device) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def parity(cls: type, device: torch.device) -> Row:
    """Relative differences of loss and gradient from the CPU's."""
    objective = contract.build(cls)
    torch.manual_seed(0)
    energy = contract.Energy(3, objective.noisy).double()
    batch = Batch(torch.randn(16, 3, generator=generator(0, "x"), dtype=torch.float64), torch.arange(16) % 3)
    state = objective.init(energy, batch.x, generator(0, "init"))
    noise = objective.draw(state, batch, generator(0, "draw"), 0.5)
    found = []
    for where in (torch.device("cpu"), device):
        net = copy.deepcopy(energy).to(where)
        loss, *_ = objective.loss(net, moved(state, where), moved(batch, where), moved(noise, where))
        loss.backward()
        grad = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        found.append((loss.detach().cpu(), grad.cpu()))
    (loss, grad), (other_loss, other_grad) = found
    errors = float((loss - other_loss).abs() / loss.abs()), float((grad - other_grad).norm() / grad.norm())
    return *(f"{error:.1e}" for error in errors), "yes" if max(errors) <= BOUND else "NO"


def device_tests(device: torch.device, seconds: float, quick: bool) -> None:
    section("Tests of the device")
    files = [f"tests/device/{name}.py" for name in ("test_device", "test_masked")]
    options = ["-q", "--noconftest", "--import-mode=importlib", "-o", "addopts=", "-o", "filterwarnings=default"]
    words = [sys.executable, "-m", "pytest", *options, *files]
    words += ["-k", "ULA or stop"] if quick else []
    here = "meta" if device.type == "cpu" else str(device)
    env = {**os.environ, "THALWEG_TEST_DEVICE": here, "PYTHONPATH": str(ROOT / "src")}
    try:
        done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        lines = done.stdout.splitlines()
        print(f"On {here}: {lines[-1] if lines else done.stderr[-300:]}", flush=True)
        if done.returncode:
            print("\n".join(["```", *lines[-40:], "```"]), flush=True)
    except subprocess.TimeoutExpired:
        print("left out: the section's time was over", flush=True)


def dual() -> tuple[nn.Module, Any]:
    return UNetEnergy(shape=(1, 28, 28), sigma_min=0.03), DualScoreMatching(time_weight=0.005)


def pcd() -> tuple[nn.Module, Any]:
    chains = {"num_steps": 20, "buffer_size": 2000, "gradient_penalty": 0.1, "data_noise": 0.03}
    return ConvEnergy(shape=(1, 28, 28)), ContrastiveDivergence(sampler=PIXELS, **chains)


class Trainings:
    """Rows of training speed; the first of each network is what the others are compared with."""

    def __init__(self, device: torch.device, quick: bool):
        self.device, self.quick, self.seconds = device, quick, {}

    def jobs(self) -> Iterator[tuple[str, Callable[[], Row]]]:
        for name, make in (("dual U-Net", dual), ("pcd conv", pcd)):
            for batch in (8,) if self.quick else (64, 512):
                for how in ("fp32", "fp32 tf32", "bf16", "fp32 compiled", "bf16 compiled"):
                    if "compiled" not in how or (make is dual and not self.quick):  # chains are not compiled
                        yield f"{name}, {batch}, {how}", lambda make=make, b=batch, how=how: self.row(make, b, how)

    def row(self, make: Callable[[], tuple[nn.Module, Any]], batch: int, how: str) -> Row:
        torch.manual_seed(0)
        energy, objective = make()
        x = torch.rand(2 * batch, 1, 28, 28, generator=generator(0, "x"))
        if isinstance(energy, UNetEnergy):
            energy.fit(torch.rand(1000, 1, 28, 28, generator=generator(0, "fit")))
        turns = 2 if self.quick else 8
        given = {"steps": 10 * turns, "batch_size": batch, "compile": "compiled" in how, "guard": {"policy": "warn"}}
        settings = TrainSettings.model_validate({**given, "log_every": 2 if self.quick else 10})
        update = Update(objective, Loader(x, batch_size=batch, seed=0), Identity(), settings, device=self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        times, start = [], time.perf_counter()
        with tf32("tf32" in how):
            state, guard = update.first_state(energy), Guard(settings.guard, objective)
            precision = "bf16" if "bf16" in how else "fp32"
            for _ in run_steps(update, state, guard, 10 * turns, precision):  # pyright: ignore[reportArgumentType]
                if state.step % settings.log_every == 0:  # the host has read, so the device is done
                    times.append((time.perf_counter() - start) / settings.log_every)
                    start = time.perf_counter()
                if self.quick and state.step == 2 * settings.log_every:
                    break
        each = median(times[1:])  # the first turn warms up
        plain = self.seconds.setdefault((make, batch), each)
        memory = torch.cuda.max_memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else float("nan")
        return f"{1e3 * each:.2f}", f"{batch / each:,.0f}", f"{each / plain:.2f}", f"{memory:.0f}"


class Chains:
    """Rows of the speed of chains of Langevin steps."""

    def __init__(self, device: torch.device, quick: bool):
        self.device, self.quick, self.seconds = device, quick, {}

    def jobs(self) -> Iterator[tuple[str, Callable[[], Row]]]:
        nets = {"conv": lambda: ConvEnergy(shape=(1, 28, 28)), "strided": lambda: StridedEnergy(shape=(1, 28, 28))}
        for name, make in nets.items():
            for batch in (8,) if self.quick else (64, 1024):
                for how in ("fp32", "fp32 tf32", "bf16", "fp32 compiled"):
                    if not (self.quick and "compiled" in how):
                        yield f"{name}, {batch}, {how}", lambda make=make, b=batch, how=how: self.row(make, b, how)

    def row(self, make: Callable[[], nn.Module], batch: int, how: str) -> Row:
        torch.manual_seed(0)
        energy, num = place(make(), self.device), 5 if self.quick else 100
        x = torch.rand(batch, 1, 28, 28, generator=generator(0, "x")).to(self.device)
        given = {"precision": "bf16" if "bf16" in how else "fp32", "compile": "compiled" in how}
        times = []
        with tf32("tf32" in how):
            for _ in range(2 if self.quick else 6):
                start = time.perf_counter()
                run_chain(PIXELS, energy, x, num_steps=num, **given)
                synchronise(self.device)
                times.append((time.perf_counter() - start) / num)
        each = median(times[1:])
        plain = self.seconds.setdefault((make, batch), each)
        return f"{1e3 * each:.3f}", f"{batch / each:,.0f}", f"{each / plain:.2f}"


def sampling(device: torch.device, quick: bool, precision: str) -> Row:
    """Digits by annealed sampling; the first block warms up."""
    torch.manual_seed(0)
    energy, steps, num = place(dual()[0], device), 2 if quick else 40, 100 if quick else 1000
    sampler = Heun(num_steps=steps, churn=0.6, rho=3.0)
    blocks = anneal(sampler, energy, 100 + num, precision=precision)  # pyright: ignore[reportArgumentType]
    next(blocks)
    synchronise(device)
    start = time.perf_counter()
    for _ in blocks:
        pass
    synchronise(device)
    seconds = time.perf_counter() - start
    return f"{seconds:.2f}", f"{num / seconds:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether every section runs")
    parser.add_argument("--sections", nargs="+", choices=[*BUDGETS], default=[*BUDGETS])
    args = parser.parse_args()
    device = find_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "a CPU"
    print(f"# {name}\n\nPython {platform.python_version()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}.")
    print("`python benchmarks/device.py " + " ".join(sys.argv[1:]) + "`", flush=True)
    if "parity" in args.sections:
        section("Parity with the CPU, float64", "objective", "loss", "gradient", f"within {BOUND:g}")
        within(BUDGETS["parity"], {cls.__name__: lambda cls=cls: parity(cls, device) for cls in contract.OBJECTIVES})
    if "tests" in args.sections:
        device_tests(device, BUDGETS["tests"], args.quick)
    ratios: dict[str, list[float]] = {"mixed precision doubles the speed": [], "compilation gives 30 %": []}
    if "training" in args.sections:
        heads = ("network, batch, how", "ms a step", "rows a second", "time over fp32's", "MiB")
        section("Training", *heads)
        within(BUDGETS["training"], noted(dict(Trainings(device, args.quick).jobs()), ratios, 2))
    if "chains" in args.sections:
        section("Chains", "network, batch, how", "ms a step", "chain steps a second", "time over fp32's")
        within(BUDGETS["chains"], noted(dict(Chains(device, args.quick).jobs()), ratios, 2))
    if "sampling" in args.sections:
        section("Sampling of digits, 40 Heun steps", "precision", "seconds", "digits a second")
        within(BUDGETS["sampling"], {p: lambda p=p: sampling(device, args.quick, p) for p in ("fp32", "bf16")})
    if any(ratios.values()):
        section("What articles say", "claim", "time over fp32's, of each row above")
        for claim, found in ratios.items():
            say(claim, ", ".join(f"{ratio:.2f}" for ratio in found) or "not measured")


def noted(jobs: dict[str, Callable[[], Row]], ratios: dict[str, list[float]], at: int) -> dict[str, Callable[[], Row]]:
    """The jobs, whose ratios count for the claim that they test."""

    def of(name: str, job: Callable[[], Row]) -> Callable[[], Row]:
        def call() -> Row:
            row = job()
            for mark, claim in (
                ("bf16", "mixed precision doubles the speed"),
                ("fp32 compiled", "compilation gives 30 %"),
            ):
                if name.endswith(mark):
                    ratios[claim].append(float(row[at]))
            return row

        return call

    return {name: of(name, job) for name, job in jobs.items()}


if __name__ == "__main__":
    main()
