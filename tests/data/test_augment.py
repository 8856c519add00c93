"""Augmentation alters the share it names, fades, is addressed, and leaves the rest bit for bit."""

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.data.augment import Warp


def digits(n=400):
    x = torch.zeros(n, 1, 28, 28)
    x[:, :, 8:20, 12:16] = 1
    return x


@pytest.mark.parametrize(
    ("until", "progress", "share"),
    [(None, 0.0, 0.6), (None, 0.9, 0.6), (0.8, 0.0, 0.6), (0.8, 0.4, 0.3), (0.8, 0.8, 0.0), (0.8, 0.99, 0.0)],
)
def test_the_named_share_is_warped_and_the_rest_keeps_its_bits(until, progress, share):
    x = digits(4000)
    y = Warp(share=0.6, until=until)(x, generator(0, "a"), progress)
    changed = (y != x).flatten(1).any(1).float().mean().item()
    assert changed == pytest.approx(share, abs=5 * (0.25 / 4000) ** 0.5 if share else 0)
    assert y.shape == x.shape
    assert y.min() >= 0
    assert y.max() <= 1 + 1e-6


def test_nothing_moves_without_stretch_and_shift_and_a_shift_moves_by_its_deviation():
    x = digits()
    assert torch.allclose(Warp(share=1, stretch=0, shift=0)(x, generator(0, "a"), 0.0), x, atol=1e-5)
    y = Warp(share=1, stretch=0, shift=0.1)(x, generator(0, "a"), 0.0)
    rows = torch.arange(28.0)
    centre = (y.sum((1, 3)) * rows).sum(1) / y.sum((1, 2, 3))
    assert centre.std().item() == pytest.approx(0.1 * 14, rel=0.15)  # half the side is one unit


def test_the_generator_decides_alone():
    x = digits(20)
    one, two, other = (Warp()(x, generator(0, "a", step), 0.0) for step in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("change", [{"share": 1.5}, {"until": 0}, {"stretch": -1}, {"shift": float("nan")}])
def test_senseless_values_are_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        Warp(**change)


def test_vectors_are_refused():
    with pytest.raises(UserError, match="data: must be images"):
        Warp()(torch.zeros(3, 2), generator(0, "a"), 0.0)
