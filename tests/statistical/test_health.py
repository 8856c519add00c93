"""The health signals say what they are named after, on chains whose state is known."""

import pytest
import torch

from thalweg.core.rng import generator
from thalweg.objective.contrastive.health import of_chains, overlap
from thalweg.sampler.base import Info


def normal(*shape, step=0):
    return torch.randn(*shape, generator=generator(0, "x", step), dtype=torch.float64)


def signals(begun, ended, real, finite=None, clamp=None):
    info = Info(torch.full((len(ended),), 0.5), torch.full((len(ended),), 3.0))
    return {
        name: float(value)
        for name, value in of_chains(
            begun, ended, torch.ones(len(ended)).bool() if finite is None else finite, real, info, clamp
        ).items()
    }


def test_chains_at_the_data_with_their_own_paths_are_healthy():
    real, begun = normal(4000, 3), normal(4000, 3, step=1)
    found = signals(begun, begun + 0.1, real)
    assert found["spread"] == pytest.approx(1, abs=0.05)
    assert found["displacement"] == pytest.approx(0.1)
    assert (found["lineages"], found["diverged"]) == (1, 0)
    assert (found["acceptance"], found["chain_grad_norm"]) == (0.5, 3)
    assert "clamped" not in found


def test_collapse_copies_and_walls_are_seen():
    real, begun = normal(1000, 3), normal(1000, 3, step=1)
    assert signals(begun, 0.01 * begun, real)["spread"] == pytest.approx(0.01, rel=0.1)
    copied = begun[torch.arange(1000) % 100]
    assert signals(begun, copied, real)["lineages"] == pytest.approx(0.1, abs=0.002)
    boxed = begun.clamp(-0.5, 0.5)
    assert signals(begun, boxed, real, clamp=(-0.5, 0.5))["clamped"] == pytest.approx(0.617, abs=0.03)


def test_chains_that_diverged_are_counted_and_do_not_count_as_moved():
    begun = normal(10, 3)
    finite = torch.arange(10) >= 3
    ended = torch.where(finite[:, None], begun, begun + 7)  # begun anew elsewhere
    found = signals(begun, ended, begun, finite)
    assert found["diverged"] == pytest.approx(0.3)
    norms = torch.where(finite, 3.0, float("nan"))
    spoilt = of_chains(begun, ended, finite, begun, Info(torch.ones(10), norms), None)
    assert float(spoilt["chain_grad_norm"]) == 3  # of the chains that live
    assert found["displacement"] == 0


def test_constant_data_and_single_chains_give_finite_signals():
    one = torch.zeros(1, 3)
    assert all(torch.isfinite(torch.tensor(v)) for v in signals(one, one, one).values())
    assert all(torch.isfinite(torch.tensor(v)) for v in signals(one, one, torch.zeros(5, 3)).values())


def test_overlap_is_one_minus_the_distance_of_the_distributions():
    u = normal(2000)
    assert overlap(u, u) == 1
    assert overlap(u, u + 100) == 0
    shifted = 1 - (2 * torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(0.5)) - 1)  # N(0, 1) against N(1, 1)
    assert float(overlap(u, normal(2000, step=1) + 1)) == pytest.approx(float(shifted), abs=0.06)
    assert overlap(u[:700], u[700:]) > 0.9
