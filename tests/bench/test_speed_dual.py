"""The rows of dual score matching: both contenders make the same updates and the same samples."""

import copy

import torch

from thalweg.bench import dual as speed_dual
from thalweg.core.rng import generator


def test_plain_code_and_ours_train_alike():
    energy = speed_dual.energy_of((1, 8, 8), widths=(8, 16), num_blocks=(1, 1), embed=16).double()
    x, ours = torch.rand(8, 1, 8, 8, generator=generator(0, "x")).double(), copy.deepcopy(energy)
    plain, own = speed_dual.plain_step(energy, x), speed_dual.our_step(ours, x)
    losses = [(float(plain(i)), float(own(i))) for i in range(4)]
    assert all(abs(a - b) < 1e-8 * a for a, b in losses)
    assert losses[0] != losses[-1]
    for a, b in zip(energy.parameters(), ours.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)


def test_the_samplers_steps_are_the_same():
    jobs = speed_dual.sampling(9)
    plain, ours = (jobs[name]() for name in (speed_dual.PLAIN, speed_dual.OURS))
    assert torch.allclose(plain, ours, rtol=1e-5, atol=1e-5)


def test_rows_and_table(monkeypatch):
    jobs = {speed_dual.PLAIN: lambda: None, speed_dual.OURS: lambda: None}
    monkeypatch.setattr(speed_dual, "training", lambda **_: jobs)
    rows = speed_dual.measure("training", 1, rounds=3)
    assert [row.name for row in rows] == [speed_dual.PLAIN, speed_dual.OURS]
    assert rows[1].ratio == 1
    assert len(speed_dual.table(rows).splitlines()) == 4
