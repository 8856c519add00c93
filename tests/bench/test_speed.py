"""The table of speeds: all contenders do the same work, and its numbers are what they say."""

import copy

import pytest
import torch

from thalweg.bench import chains as speed
from thalweg.energy.engine.freeze import frozen


def test_the_tutorials_loop_and_ours_are_the_same_dynamics():
    """Without noise both descend alike (the power iteration has settled on the weights after some rounds)."""
    torch.manual_seed(0)
    energy, x = speed.NETS["cnn"](), torch.rand(2, 1, 28, 28)
    for _ in range(30):
        energy(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "NOISE", 0.0)
        a, b = speed.tutorial(copy.deepcopy(energy), x, 3), speed.ours(energy, x, 3)
    assert torch.allclose(a, b, atol=1e-5)
    assert not torch.allclose(a, x, atol=1e-5)


@pytest.mark.parametrize(("net", "products"), [("cnn", 8), ("resnet", 20), ("mlp", 8)])
def test_the_roofline_has_every_product_twice(net, products):
    torch.manual_seed(0)
    energy = speed.NETS[net]()
    x = torch.rand(2, *energy.shape)
    count = 0

    def counted(jobs):
        nonlocal count
        count += 1
        return jobs[0]

    with pytest.MonkeyPatch.context() as patch, frozen(energy):
        patch.setattr(speed, "_fastest", counted)
        speed.roofline(energy, x)()
    layers = [m for m in energy.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in layers)
    assert 2 * len(layers) == products
    assert count == 2 * convolutions + (len(layers) - convolutions)
    assert not any(m._forward_hooks for m in layers)


def test_rows_ratios_and_table():
    def other(energy, x, num_steps):
        return lambda: speed.tutorial(energy, x, num_steps)

    before = torch.get_num_threads()
    rows = speed.measure("mlp", 4, 1, rounds=3, others={"other": other})
    assert torch.get_num_threads() == before
    named = {row.name: row for row in rows}
    assert list(named) == ["tutorial", "other", speed.OURS, speed.ROOFLINE]
    assert named[speed.OURS].ratio == 1
    assert named[speed.ROOFLINE].ratio < 1 < named["tutorial"].ratio
    assert named[speed.OURS].rate == pytest.approx(4e3 / named[speed.OURS].cpu_ms)
    lines = speed.table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert "100 %" in lines[-1]
    assert len({line.count("|") for line in lines}) == 1


def test_bf16_is_measured_where_it_pays():
    assert "thalweg bf16" in speed.contenders("mlp", 2, bf16=True)
    refusal = speed.bf16_pays()
    assert refusal is None or "times as long" in refusal
