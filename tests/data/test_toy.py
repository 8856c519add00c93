import pytest
import torch

from thalweg.core.rng import generator
from thalweg.data.toy import TOYS

GRID = torch.linspace(-1.6, 1.6, 801, dtype=torch.float64)
KNOWN = [name for name, toy in TOYS.items() if toy.log_prob is not None]


@pytest.mark.parametrize("name", TOYS)
def test_samples_are_addressed_and_of_unit_range(name: str) -> None:
    a, b = (TOYS[name].sample(4000, generator(0, "t")) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == (4000, 2)
    assert a.dtype == torch.float32
    assert 0.7 < float(a.abs().max()) < 1.5
    assert float(a.mean(0).abs().max()) < 0.06  # about 4 sigma


@pytest.mark.parametrize("name", TOYS)
def test_samples_do_not_depend_on_the_default_type(name: str) -> None:
    want = TOYS[name].sample(9, generator(0, "t"))
    torch.set_default_dtype(torch.float64)
    try:
        got = TOYS[name].sample(9, generator(0, "t"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", KNOWN)
def test_the_density_integrates_to_one_and_is_that_of_the_samples(name: str) -> None:
    log_prob = TOYS[name].log_prob
    assert log_prob is not None
    centres = (GRID[1:] + GRID[:-1]) / 2
    cells = torch.cartesian_prod(centres, centres)
    log_p = log_prob(cells)
    mass = log_p.exp() * (GRID[1] - GRID[0]) ** 2
    assert float(mass.sum()) == pytest.approx(1, abs=2e-3)
    entropy = -float((mass * log_p.clamp_min(-1e3)).sum())
    values = -log_prob(TOYS[name].sample(20_000, generator(1, "t")).double())
    error = float(values.std()) / 20_000**0.5
    assert abs(float(values.mean()) - entropy) < 4 * error + 3e-3
    # a mutant: samples a tenth wider than the density says
    wide = -log_prob(1.1 * TOYS[name].sample(20_000, generator(1, "t")).double())
    assert not abs(float(wide.mean()) - entropy) < 4 * error + 3e-3
