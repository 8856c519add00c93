"""Two modes of different scale in 1,000 dimensions: what their level is, one noise level cannot tell, and many can.

Guth, Kadkhodaie & Simoncelli (2025). The short form takes the exact energy with the level between its modes off by so
many nats, and asks which level an objective prefers. The long form trains a network (`benchmarks/two_scales.py`).
"""

import math

import pytest
import torch

from thalweg.core.rng import generator
from thalweg.energy.wrappers import AtNoise
from thalweg.objective.base import Batch
from thalweg.objective.score import dual
from thalweg.objective.score.noise_levels import NoiseLevels
from thalweg.objective.score.score import DenoisingScoreMatching

from .scripts import script
from .test_score_matching import mutant

DIM, SCALES, SHARE = 1000, (0.5, 2.0), 0.7
TRUE = DIM * math.log(SCALES[1] / SCALES[0]) + math.log(SHARE / (1 - SHARE))  # nats between typical points
OFFSETS = torch.linspace(-300, 300, 25, dtype=torch.float64)


class Modes:
    """-log of the smoothed mixture, its outer mode raised by `offset` nats while the modes are apart: U(y, t).

    The offset falls to zero around t = 0.3, far below the noise where the modes meet: no score in y sees it.
    """

    t_min, t_max = 0.05**2, 30.0**2

    def __init__(self, offset):
        self.offset = offset

    def __call__(self, y, t):
        logs, squared = [], y.square().sum(1)
        raised = self.offset * torch.sigmoid(-2 * (t / 0.3).log())
        for scale, level in zip(SCALES, (math.log(SHARE), math.log(1 - SHARE) - raised), strict=True):
            v = scale**2 + t
            logs.append(level - 0.5 * squared / v - 0.5 * DIM * (2 * math.pi * v).log())
        return -torch.logsumexp(torch.stack(logs), 0)


def rows(n=256):
    draws = generator(0, "two-scales")
    scale = torch.where(torch.rand(n, 1, generator=draws) < SHARE, *SCALES)
    return (scale * torch.randn(n, DIM, generator=draws)).double()


def losses(objective, energy_of):
    """The loss at each offset, on the same rows and noise."""
    batch = Batch(rows())
    state = objective.init(energy_of(0.0), batch.x, generator(0, "init"))
    noise = objective.draw(state, batch, generator(0, "noise"), 0.0)
    return torch.stack([objective.loss(energy_of(float(c)), state, batch, noise)[0].detach() for c in OFFSETS])


def dual_losses(module=dual):
    return losses(module.DualScoreMatching(levels=NoiseLevels(share=0.0), scale=math.inf), Modes)


def test_one_level_is_blind_to_the_difference_and_dual_score_matching_is_not():
    """Levels 600 nats apart have the same single-scale loss; the dual loss is least within 5 % of the truth.

    Mutant: dual score matching without its time score, which is blind too.
    """
    single = losses(DenoisingScoreMatching(sigma=0.05), lambda c: AtNoise(Modes(c), Modes.t_min))
    assert single.max() - single.min() < 1e-9
    found = dual_losses()
    assert abs(float(OFFSETS[found.argmin()])) / TRUE <= 0.05
    assert found[0] > found.min() + 0.1
    assert found[-1] > found.min() + 0.1
    without = dual_losses(mutant(dual, " + self.time_weight * of_time.mean()", ""))
    assert without.max() - without.min() < 1e-3


@pytest.mark.slow
def test_a_trained_network_finds_the_difference_by_dual_score_matching_alone():
    """3 seeds: dual within 5 % of the true difference, single-scale off by ten times as much or more."""
    bench = script("two_scales")
    want = bench.difference(lambda y: bench.truth(y, bench.SIGMA_MIN**2))
    for seed in range(3):
        by_dual, by_single = (abs(bench.learned(m, seed, 3000) / want - 1) for m in ("dual", "single"))
        assert by_dual <= 0.05
        assert by_single >= 10 * by_dual
