"""Subnormal terms are zeros inside a sum, and as before outside, whatever happened there."""

import pytest
import torch

from thalweg.energy.density.kde_ivf import IVFKernelDensityEnergy
from thalweg.energy.density.subnormal import SUBNORMAL, subnormals_as_zeros


def kept():
    return bool(torch.full((1,), SUBNORMAL).mul_(1.0).any())


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_zeros_inside_and_as_before_outside(one_thread):
    assert kept()
    with subnormals_as_zeros(torch.device("cpu")) as done:
        assert kept() != done
        with subnormals_as_zeros(torch.device("cpu")):
            pass
        assert kept() != done
    with pytest.raises(KeyError), subnormals_as_zeros(torch.device("cpu")):
        raise KeyError
    assert kept()


def test_sums_are_the_same_with_several_threads(one_thread):
    """Where terms are held up instead."""
    r = torch.Generator().manual_seed(0)
    rows, x = (torch.randn(n, 3, generator=r, dtype=torch.float64) for n in (2000, 100))
    energy = IVFKernelDensityEnergy(rows, t=0.01, gap=0)
    alone = energy(x)
    torch.set_num_threads(2)
    with subnormals_as_zeros(torch.device("cpu")) as done:
        assert not done
    torch.testing.assert_close(energy(x), alone, rtol=1e-6, atol=1e-6)
