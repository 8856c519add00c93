"""Far from both sides: what no row looks like comes last; what some row looks like is ranked as before."""

import pytest
import torch

from thalweg.apps.rerank import extrapolation_penalty as support
from thalweg.apps.rerank.density_ratio import fit_ratio
from thalweg.apps.rerank.reranker import EnergyReranker
from thalweg.apps.rerank.settings import RatioSettings
from thalweg.core.rng import generator

QUICK = RatioSettings(ensemble=2, steps=60, batch=32, hidden=8, channels=(4, 8))


def blobs(n, stream, *, broken=False):
    """Discs of several sizes, places and tones on black; broken ones lack a stripe."""
    g = generator(0, stream)
    at, size, tone = (torch.rand(n, k, 1, 1, generator=g) for k in (2, 1, 1))
    grid = torch.arange(12.0).view(1, 1, 12, 1), torch.arange(12.0).view(1, 1, 1, 12)
    apart = (grid[0] - 4 - 3 * at[:, :1]) ** 2 + (grid[1] - 4 - 3 * at[:, 1:]) ** 2
    x = (0.6 + 0.4 * tone) * torch.sigmoid(2 * ((2 + 1.5 * size) ** 2 - apart))
    if broken:
        x[:, :, 5:7] = 0
    return x


def oddities():
    noise = torch.rand(1, 1, 12, 12, generator=generator(0, "noise"))
    return torch.cat([torch.full((1, 1, 12, 12), v) for v in (0.0, 0.3, 1.0)] + [noise])


@pytest.fixture(scope="module")
def energy():
    return fit_ratio(blobs(200, "real"), blobs(200, "made", broken=True), QUICK)[0]


def test_what_no_row_looks_like_comes_last(energy):
    """Black, grey, white and noise come after all draws, for any networks; mutant: without limits some do not."""
    x, odd = torch.cat([blobs(100, "new"), blobs(100, "bad", broken=True)]), oddities()
    assert float(energy(odd).min()) > float(energy(x).max())
    assert not set(range(200, 204)) & set(EnergyReranker(energy).rank(torch.cat([x, odd]), 20).tolist())
    held = energy.limits.clone()
    energy.limits.copy_(support.unlimited(True))
    try:
        assert float(energy(odd).min()) < float(energy(x).max())
    finally:
        energy.limits.copy_(held)


def test_what_some_row_looks_like_is_ranked_as_before(energy):
    """Of fresh rows of both sides the term is exactly zero for all but one in a hundred."""
    x = torch.cat([blobs(500, "more"), blobs(500, "worse", broken=True)])
    assert int((support.beyond(x, energy.limits) != 0).sum()) <= 10


def test_the_term_has_a_slope_everywhere(energy):
    x = oddities().requires_grad_()
    support.beyond(x, energy.limits).sum().backward()
    assert bool(x.grad.isfinite().all())


def test_figures_of_a_pattern_are_known():
    x = ((torch.arange(4)[:, None] + torch.arange(4)) % 2).float()[None, None]
    assert torch.allclose(support.figures(x), torch.tensor([[0.5, 0.5, 2.0]]))
    limits = support.limits(torch.zeros_like(x), x)
    assert torch.allclose(limits, torch.tensor([[0.0, 0, 0], [0.5, 0.5, 2.0]]), atol=1e-5)
    white = torch.ones_like(x)  # its mean is one width beyond
    assert torch.allclose(support.beyond(white, limits), torch.tensor([1 - support.MARGIN]))
