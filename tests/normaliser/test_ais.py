"""Annealed importance sampling along any path: both weights are unbiased and bound log Z from two sides (S28, S29)."""

import math
from dataclasses import dataclass

import pytest
import torch

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.analytic import Gaussian
from thalweg.normaliser.ais import effective_size, forward, log_mean, require_exact, reverse
from thalweg.normaliser.bennett import sandwich, unseen
from thalweg.normaliser.tempering import AnnealingPath, Geometric, Target
from thalweg.sampler.annealed import Heun
from thalweg.sampler.langevin import MALA, ULA

N = 4000


@dataclass
class Narrowing:
    """Gaussians that move and narrow from level to level: a path that is none over temperatures."""

    num_levels: int = 16

    def __post_init__(self):
        self.levels = [
            Gaussian((k / self.num_levels, -k / self.num_levels), torch.eye(2) * 0.92**k)
            for k in range(self.num_levels + 1)
        ]

    @property
    def log_z(self):
        return float(self.levels[0].log_z)

    def draw(self, n, generator):
        return self.levels[0].draw(n, generator)

    def energy(self, k):
        return self.levels[k]

    def kernel(self, k):
        return MALA(step_size=0.4 * 0.92**k)


def mean_error(log_w, log_ratio):
    """(mean(w / ratio) - 1) / its standard error."""
    w = (log_w - log_ratio).exp()
    return float((w.mean() - 1) / (w.std() / len(w) ** 0.5))


def test_the_weights_of_both_passes_are_unbiased_and_bound_the_constant():
    path = Narrowing()
    log_ratio = float(path.levels[-1].log_z) - path.log_z
    there = forward(path, N, generator(0, "there"), num_steps=2)
    exact = path.levels[-1].draw(N, generator(0, "exact"))
    back = reverse(path, exact, generator(0, "back"), num_steps=2)
    assert abs(mean_error(there.log_w, log_ratio)) < 5
    assert abs(mean_error(back.log_w, -log_ratio)) < 5
    assert there.log_w.std() > 0.3
    assert back.log_w.std() > 0.3
    assert there.log_w.mean() < log_ratio < -back.log_w.mean()
    found = sandwich(there.log_w, back.log_w, N + torch.arange(N), generator(0, "bootstrap"))
    assert abs(found.estimate - log_ratio) < 5 * found.error
    assert found.error < 0.012
    assert found.low < log_ratio < found.high
    assert abs(log_mean(there.log_w) - found.lower) < 1e-12
    assert len(there.acceptance) == path.num_levels
    assert 0.3 < float(there.acceptance.mean()) < 0.95
    # The weighted particles follow the last law.
    weights = torch.softmax(there.log_w, 0)
    error = weights @ there.x - path.levels[-1].mean
    spread = ((weights[:, None] * (there.x - path.levels[-1].mean)).square().sum(0)).sqrt()
    assert bool((error.abs() < 5 * spread).all())


def test_a_particle_without_mass_has_weight_zero():
    """E infinite on half the plane: its mass is half that of the whole, and infinities do not become NaN."""
    whole = Gaussian()

    def half(x):
        return torch.where(x[:, 0] > 0, whole(x), torch.inf)

    annealing = Geometric(whole, Target(half), MALA(step_size=1.0), lambda x: x)
    path = AnnealingPath(annealing, [0.0, 0.3, 0.6, 1.0], [0.5] * 4)
    found = forward(path, N, generator(0, "half"))
    assert abs(mean_error(found.log_w, float(torch.tensor(0.5).log()))) < 5
    assert bool((found.log_w == -torch.inf).any())
    assert not bool(found.log_w.isnan().any())
    assert effective_size(found.log_w) == pytest.approx(float((found.log_w > -1).sum()))


def test_a_target_is_evaluated_once_a_proposal():
    calls = []

    def energy(x):
        calls.append(len(x))
        return 2 * x.square().sum(1)

    target = Target(energy)
    path = AnnealingPath(Geometric(Gaussian(), target, MALA(step_size=1.0), lambda x: x), [0, 0.2, 0.5, 1.0], [0.3] * 4)
    forward(path, 50, generator(0, "calls"), num_steps=2)
    assert len(calls) == target.num_evaluations == 1 + 3 * 2  # where the first level begins, and each proposal


def test_memory_changes_no_weight():
    """The same numbers as by energies that remember nothing."""
    target = Gaussian((1.0, 0.0), ((0.5, 0.1), (0.1, 0.2)))
    base, betas = Gaussian(), [k / 10 for k in range(11)]
    path = AnnealingPath(Geometric(base, Target(target), MALA(step_size=1.0), lambda x: x), betas, [0.2] * 11)

    class Plain(AnnealingPath):
        def energy(self, k):
            return lambda x: (1 - betas[k]) * base(x) + betas[k] * target(x)

    plain = Plain(path.annealing, path.betas, path.step_sizes)
    ours, theirs = (forward(p, 20, generator(0, "same"), num_steps=2) for p in (path, plain))
    assert torch.allclose(ours.log_w, theirs.log_w, atol=1e-12)
    assert torch.allclose(ours.x, theirs.x, atol=1e-12)


@pytest.mark.parametrize(
    "kernel", [ULA(step_size=0.1), Heun(), MALA(step_size=0.1, temperature=0.5), MALA, "MALA"], ids=str
)
def test_kernels_of_another_law_are_refused(kernel):
    with pytest.raises(UserError) as error:
        require_exact(kernel)
    assert error.value.argument.startswith("kernel")
    assert isinstance(require_exact(MALA(step_size=0.1)), MALA)


def test_bennetts_ratio_is_exact_for_passes_of_two_sizes():
    """Gaussian work that Crooks' theorem joins: f ~ N(c - s² / 2, s²), r ~ N(c + s² / 2, s²); and its error is true."""
    c, s, n, m = 3.0, 1.5, 1000, 150
    found = []
    for seed in range(12):
        draws = generator(seed, "work")
        f, r = (torch.randn(size, generator=draws, dtype=torch.float64) * s + c for size in (n, m))
        found.append(sandwich(f - s**2 / 2, -(r + s**2 / 2), n + torch.arange(m), draws))
    errors = torch.tensor([(each.estimate - c) / each.error for each in found])
    assert errors.abs().max() < 4
    assert 0.6 < errors.square().mean().sqrt() < 1.5
    assert all(each.error < each.lower_error and each.error < each.upper_error for each in found)


def test_chains_of_one_ancestor_count_once():
    """Ten reverse chains from each of 40 starts are as good as 40, not as 400."""
    draws = generator(0, "family")
    starts = torch.randn(40, generator=draws, dtype=torch.float64)
    f = torch.randn(4000, generator=draws, dtype=torch.float64)
    many, ancestors = starts.repeat(10), 4000 + torch.arange(40).repeat(10)
    together, alone = (sandwich(f, many, a, draws).upper_error for a in (ancestors, 4000 + torch.arange(400)))
    assert together > 2.5 * alone


def test_weights_that_no_chain_has_drawn_widen_the_upper_end():
    """Normal log w of variance v: three relative errors sqrt((exp(v) - 1) / n) where few chains hide the tail, and
    never over mean log w; draws of the law's own need none of it. Mutants: benchmarks/mutants/normaliser.toml.
    """
    n = 1000
    z = torch.randn(n, generator=generator(0, "tail"), dtype=torch.float64)
    z = (z - z.mean()) / z.std()
    assert unseen(z) == pytest.approx(3 * ((math.e - 1) / n) ** 0.5)
    wide = 3 * z
    assert unseen(wide) == pytest.approx(log_mean(wide))  # mean log w is 0
    own, given = (sandwich(-wide - 9, wide, a + torch.arange(n), generator(0, "b")) for a in (0, n))
    assert own.high == pytest.approx(0, abs=1e-9)
    assert own.upper + 3 * own.upper_error < given.high < 0
    assert unseen(torch.full((4,), -torch.inf)) == 0
