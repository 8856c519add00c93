"""How well constants are estimated: S28, S29, S31, and how often the interval holds (docs/experiments/trust.md).

    python benchmarks/log_z.py known|sandwich|few|coverage

Rows of a table in Markdown, nats, less the exact log Z. One thread.
"""

import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from thalweg.core.rng import generator
from thalweg.energy.analytic import GaussianMixture
from thalweg.normaliser.log_z import log_z

TESTS = Path(__file__).parents[1] / "tests"


def module(path: Path) -> Any:
    """A module of the tests, which hold the models."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found
    spec.loader.exec_module(found)
    return found


models, densities = module(TESTS / "normaliser" / "models.py"), module(TESTS / "statistical" / "densities.py")
KNOWN: dict[str, Callable[[], Any]] = {
    "gaussian-50": models.gaussian,
    "mixture": lambda: models.analytic(GaussianMixture()),
    "banana": lambda: models.analytic(densities.Banana()),
    "funnel": lambda: models.analytic(densities.Funnel()),
    "log-gamma": lambda: models.analytic(densities.LogGamma()),
    "network": models.network,
    "rbm-12x6": lambda: models.machine(12, 6, 1.0),
    "rbm-200x16": lambda: models.machine(200, 16, 0.5),
    "ising": models.ising,
    "potts": models.potts,
    "box": models.box,
}


def support(name: str) -> dict[str, str]:
    """The box for the model that has one."""
    return {"support": "box"} if name == "box" else {}


def known() -> Iterator[list[Any]]:
    """S28: model, log Z, error, interval, z of mean(w / Z), ESS, levels, CPU seconds."""
    for name, model in KNOWN.items():
        energy, shape, exact, _ = model()
        start = time.process_time()
        r = log_z(energy, shape=shape, tolerance=0.06, **support(name))
        z = math.expm1(r.forward - exact) / r.forward_error
        interval = f"{r.low - exact:+.3f} to {r.high - exact:+.3f}"
        seconds = f"{time.process_time() - start:.1f}"
        yield [
            name,
            f"{exact:.4f}",
            f"{r.estimate - exact:+.4f}",
            interval,
            f"{z:+.1f}",
            int(r.ess),
            r.num_steps,
            seconds,
        ]


def sandwich() -> Iterator[list[Any]]:
    """S29: model, forward, reverse from exact draws, gap, whether the exact value is between, by 5 errors."""
    for name, model in KNOWN.items():
        energy, shape, exact, draw = model()
        if draw is None:
            continue
        r = log_z(energy, shape=shape, samples=draw(512, generator(1, "x")), num_steps=1000, **support(name))
        ends = (f"{v - exact:+.4f} ± {e:.4f}" for v, e in ((r.forward, r.forward_error), (r.reverse, r.reverse_error)))
        holds = r.forward - 5 * r.forward_error <= exact <= r.reverse + 5 * r.reverse_error
        yield [name, *ends, f"{r.gap:+.4f}", holds]


def few() -> Iterator[list[Any]]:
    """S31: levels, seed, error, interval, gap, ESS, warning; two far modes in 20 dimensions."""
    means = 3 * torch.tensor([[1.0], [-1.0]]).expand(2, 20)
    energy = GaussianMixture(means, scale=0.5, weights=(0.7, 0.3))
    exact = float(energy.log_z)
    for levels in (1, 5, 100, 1000):
        for seed in range(3):
            r = log_z(energy, shape=(20,), num_steps=levels, seed=seed)
            interval = f"{r.low - exact:+.2f} to {r.high - exact:+.2f}"
            yield [
                levels,
                seed,
                f"{r.estimate - exact:+.2f}",
                interval,
                f"{r.gap:.2f}",
                int(r.ess),
                r.warning is not None,
            ]


def coverage(runs: int = 25) -> Iterator[list[Any]]:
    """Model, how often the interval holds, mean error, its root mean square, half the width, warnings."""
    cases: list[tuple[str, Callable[[], Any], dict[str, Any]]] = [
        *(
            (name, KNOWN[name], support(name))
            for name in KNOWN
            if name not in ("gaussian-50", "ising", "rbm-200x16", "box")
        ),
        ("two modes, 60 deviations apart, with samples", lambda: models.two_modes(30.0), {"exact": True}),
        *((f"two modes, {2 * d:.0f} deviations apart", lambda d=d: models.two_modes(d), {}) for d in (30.0, 4.0)),
        ("mixture, 20 levels", KNOWN["mixture"], {"num_steps": 20}),
        ("rbm-200x16, 10 levels", KNOWN["rbm-200x16"], {"num_steps": 10}),
    ]
    for name, model, options in cases:
        energy, shape, exact, draw = model()
        found = []
        for seed in range(runs):
            more = dict(options)
            if more.pop("exact", False):
                more["samples"] = draw(512, generator(seed, "x"))
            found.append(log_z(energy, shape=shape, seed=seed, **more))
        errors = torch.tensor([r.estimate - exact for r in found])
        holds, warned = (
            sum(v) for v in zip(*((r.low <= exact <= r.high, r.warning is not None) for r in found), strict=True)
        )
        width = sum(0.5 * (r.high - r.low) for r in found) / runs
        row = [f"{errors.mean():+.4f}", f"{errors.square().mean().sqrt():.4f}", f"{width:.3f}", warned]
        yield [name, f"{holds} of {runs}", *row]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in {"known": known, "sandwich": sandwich, "few": few, "coverage": coverage}[sys.argv[1]]():
        print(f"| {' | '.join(map(str, row))} |", flush=True)
