"""Four answers to one question: log p of fresh rows by the true law, by the network, by the ODE, and log Z by paths.

    python benchmarks/likelihood.py                      # 2, 8 and 64 dimensions, some ten minutes on one thread
    python benchmarks/likelihood.py --dims 8 --steps 500 --json

Rows are drawn from a mixture of five Gaussians of random axes, 24,000 to train on, and a model of recipe `dual` is
trained on them. Everything is at the lowest noise level, where the true law is a mixture too. Nats.
"""

import argparse
import json
import math
from typing import Any

import torch

import thalweg
from thalweg.core.rng import generator
from thalweg.evaluate.likelihood import ode_log_prob
from thalweg.normaliser.noise_levels import noise_levels

ROWS, FRESH, ODE_ROWS = 24_000, 256, 64


class Mixture:
    """Five Gaussians of equal weight in d dimensions, with scales from .4 to 1.2 along random axes."""

    def __init__(self, d: int, seed: int):
        draws = generator(seed, "mixture")
        spread = 1.5 if d <= 8 else 0.8  # modes that overlap a little
        self.means = spread * torch.randn(5, d, generator=draws, dtype=torch.float64)
        axes = torch.linalg.qr(torch.randn(5, d, d, generator=draws, dtype=torch.float64)).Q
        self.factors = axes * torch.logspace(math.log10(0.4), math.log10(1.2), d, dtype=torch.float64)

    def draw(self, n: int, draws: torch.Generator) -> torch.Tensor:
        """n rows, float32."""
        k = torch.randint(5, (n,), generator=draws)
        z = torch.randn(n, self.means.shape[1], 1, generator=draws, dtype=torch.float64)
        return (self.means[k] + (self.factors[k] @ z).squeeze(2)).float()

    def log_prob(self, y: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, t: float) -> torch.Tensor:
        """log p of y = scale x + offset + sqrt(t) n."""
        covariance = scale[:, None] * (self.factors @ self.factors.mT) * scale + t * torch.eye(len(scale)).double()
        laws = torch.distributions.MultivariateNormal(self.means * scale + offset, covariance)
        return laws.log_prob(y.double()[:, None]).logsumexp(1) - math.log(5)


def measure(d: int, steps: int, seed: int) -> dict[str, Any]:
    """Train on rows of the mixture, and compare."""
    law = Mixture(d, seed)
    rows = law.draw(ROWS, generator(seed, "rows"))
    bundle = thalweg.train("dual", rows, steps=steps, seed=seed, progress=False)
    model, t = bundle.model, bundle.t_min
    offset = bundle.encode(torch.zeros(1, d))[0].double()
    scale = bundle.encode(torch.ones(1, d))[0].double() - offset
    fresh, noise = law.draw(FRESH, generator(seed, "fresh")), generator(seed, "noise")
    y = bundle.encode(fresh) + math.sqrt(t) * torch.randn(FRESH, d, generator=noise)
    truth = law.log_prob(y, scale, offset, t)
    with torch.no_grad():
        network = -model(y, y.new_full((FRESH,), t)).double()
    few = y[:ODE_ROWS]
    ode = ode_log_prob(model, few, t_min=t, t_max=bundle.t_max, prior=model.prior_log_prob, num_probes=8)
    found = noise_levels(model, seed=seed, num_chains=1024, num_steps=256)
    gap = ode - network[:ODE_ROWS]
    return {
        "dimensions": d,
        "steps": steps,
        "truth": float(truth.mean()),
        "network": float(network.mean()),
        "network_less_truth": float((network - truth).mean()),
        "its_error": float((network - truth).std()) / math.sqrt(FRESH),
        "ode_less_network": float(gap.mean()),
        "its_standard_error": float(gap.std()) / math.sqrt(ODE_ROWS),
        "log_z_true": float(torch.logsumexp(network - truth, 0)) - math.log(FRESH),
        "log_z": [found.low, found.estimate, found.high],
        "ess": found.ess,
        "warning": found.warning,
        "correction": bundle.config.get("constant"),
    }


def main() -> None:
    """Print a row for each number of dimensions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 8, 64])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for d in options.dims:
        found = measure(d, options.steps, options.seed)
        print(json.dumps(found) if options.json else "\n".join(f"{key:20} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
