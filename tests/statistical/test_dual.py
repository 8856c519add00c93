"""Dual score matching where the answer is known: Gaussians in closed form, a mixture learned, the law of noise levels.

Every check names the mutants it must reject (trust S1, S2, S11 in spirit, S24).
"""

import inspect
import math
import sys
import types

import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.density.gaussian import SmoothedGaussian
from thalweg.energy.engine.silu import silu
from thalweg.energy.noise_conditional.residual import ResidualEnergy
from thalweg.objective.base import Batch
from thalweg.objective.score import dual
from thalweg.objective.score.dual import DualScoreMatching
from thalweg.objective.score.noise_levels import NoiseLevels, NoiseRange

from .stats import assert_law, assert_near, dkw_eps

D, N, REPEATS = 3, 2000, 25


def mutant(*changes):
    """The objective's module with pieces of its source replaced."""
    source = inspect.getsource(dual)
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    made = types.ModuleType("mutant_of_dual")
    sys.modules[made.__name__] = made
    exec(compile(source, made.__name__, "exec"), made.__dict__)
    return made.DualScoreMatching


class Exact(nn.Module):
    """-log N(y; m + shift, (1 + scale)(C + t I)) plus a function of t, a log t + c: exact where all of these are 0."""

    t_min, t_max = 0.1**2, 3.0**2

    def __init__(self):
        super().__init__()
        q, _ = torch.linalg.qr(torch.randn(D, D, generator=generator(0, "basis"), dtype=torch.float64))
        self.basis, self.spectrum = q, torch.tensor([0.02, 0.5, 2.0], dtype=torch.float64)
        self.mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        for name, size in (("shift", D), ("scale", 1), ("slope", 1), ("constant", 1)):
            self.register_parameter(name, nn.Parameter(torch.zeros(size, dtype=torch.float64)))

    def forward(self, y, t):
        z = (y - self.mean - self.shift) @ self.basis
        v = (1 + self.scale) * (self.spectrum + t[:, None])
        u = 0.5 * (z.square() / v + (2 * math.pi * v).log()).sum(1)
        return u + self.slope * t.log() + self.constant

    def draw(self, n, gen):
        z = torch.randn(n, D, generator=gen, dtype=torch.float64)
        return self.mean + (z * self.spectrum.sqrt()) @ self.basis.T


def gradients(objective):
    """The loss's gradient at the exact energy, (REPEATS, parameters): independent repeats give its error bar."""
    energy, rows = Exact(), []
    names = ("shift", "scale", "slope")
    for k in range(REPEATS):
        gen = generator(1, "gradients", k)
        batch = Batch(energy.draw(N, gen), None)
        state = objective.init(energy, batch.x, gen)
        loss, _, _ = objective.loss(energy, state, batch, objective.draw(state, batch, gen, 0.0))
        rows.append(torch.cat(torch.autograd.grad(loss, [getattr(energy, name) for name in names])))
    return torch.stack(rows)


def z_scores(objective):
    g = gradients(objective)
    return g.mean(0) / (g.std(0) / math.sqrt(REPEATS))


@pytest.mark.parametrize("time_weight", [0.0, 1.0])
def test_s24_the_exact_energy_is_where_the_gradient_vanishes(time_weight):
    objective = DualScoreMatching(time_weight=time_weight, scale=1.0)
    z = z_scores(objective)
    z = z[:-1] if time_weight == 0 else z  # the space score sees no function of t alone
    assert float(z.abs().max()) < 5, z


MUTANTS = {
    "the time score lacks d/2": ("= (d - eps.flatten(1)", "= (0 - eps.flatten(1)"),
    "the time score's sign": (
        "= (d - eps.flatten(1).square().sum(1)) / 2",
        "= -(d - eps.flatten(1).square().sum(1)) / 2",
    ),
    "eps has the wrong sign": ("(space - eps).flatten", "(space + eps).flatten"),
    "sqrt(t) for t in the time score": (", t * grad_t)", ", t.sqrt() * grad_t)"),
    "t for sqrt(t) in the space score": ("(root * grad_y,", "(root**2 * grad_y,"),
    "noise of variance t squared": ("batch.x + root * eps", "batch.x + root**2 * eps"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_of_the_loss_are_rejected(name):
    objective = mutant(MUTANTS[name])(time_weight=1.0, scale=1.0)
    assert float(z_scores(objective).abs().max()) > 10


def test_the_additive_constant_has_no_gradient_but_stays_in_the_graph():
    energy, gen = Exact(), generator(3, "graph")
    objective = DualScoreMatching()
    batch = Batch(energy.draw(50, gen), None)
    state = objective.init(energy, batch.x, gen)
    loss, _, _ = objective.loss(energy, state, batch, objective.draw(state, batch, gen, 0.0))
    loss.backward()
    assert energy.constant.grad.tolist() == [0.0]


def _mixture_log_prob(y, t):
    """log of 0.3 N(-1, 0.15² + t) + 0.7 N(0.6, 0.15² + t)."""
    v = 0.15**2 + t
    parts = [math.log(w) - 0.5 * (y[:, 0] - m) ** 2 / v - 0.5 * math.log(2 * math.pi * v) for w, m in _MODES]
    return torch.logsumexp(torch.stack(parts), 0)


_MODES = ((0.3, -1.0), (0.7, 0.6))


def test_a_learned_energy_beats_its_anchor_and_knows_its_constant():
    gen = generator(4, "mixture")
    which = torch.rand(4000, generator=gen) < 0.3
    x = torch.where(which, -1.0, 0.6)[:, None] + 0.15 * torch.randn(4000, 1, generator=gen)
    torch.manual_seed(0)
    energy = ResidualEnergy(shape=(1,), width=32, num_blocks=2, embed=16, sigma_min=0.2, sigma_max=6.0).fit(x)
    objective = DualScoreMatching(levels=NoiseLevels(share=0.5), time_weight=0.3, scale=1.0)
    optimizer = torch.optim.Adam(energy.parameters(), lr=3e-3)
    steps, state = 600, objective.init(energy, x, gen)
    for step in range(steps):
        batch = Batch(x[torch.randint(len(x), (128,), generator=gen)], None)
        loss, _, _ = objective.loss(energy, state, batch, objective.draw(state, batch, gen, 0.0))
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        optimizer.step()
    y = torch.linspace(-4, 4, 801)[:, None]
    t = 0.2**2
    noise = torch.full((len(y),), t)
    truth = _mixture_log_prob(y, t)
    with torch.no_grad():
        learned, anchor = -energy(y, noise), -energy.anchor(y, noise)[0]
    p = truth.exp() * 0.01
    kl_learned, kl_anchor = (float((p * (truth - q)).sum()) for q in (learned, anchor))
    assert kl_anchor > 0.4
    assert abs(kl_learned) < 0.3 * kl_anchor
    assert abs(float(learned.exp().sum()) * 0.01 - 1) < 0.16


def test_smoothed_gaussian_against_torch():
    x = (torch.randn(500, 4, generator=generator(5, "x")) @ torch.randn(4, 4, generator=generator(5, "a"))).double() + 3
    anchor = SmoothedGaussian(4).double().fit(x)
    covariance = anchor.basis @ anchor.spectrum.diag() @ anchor.basis.T
    sample = torch.cov(x.T, correction=0)
    assert torch.allclose(anchor.mean, x.mean(0), atol=1e-12)
    assert float((covariance - sample).norm() / sample.norm()) < 0.05  # the sample's, shrunk a little at most
    assert float(covariance.trace()) == pytest.approx(float(sample.trace()), rel=1e-9)
    y = 5 * torch.randn(30, 4, generator=generator(5, "y")).double()
    for t in (1e-4, 0.3, 50.0):
        law = torch.distributions.MultivariateNormal(anchor.mean, covariance + t * torch.eye(4).double())
        u, wiener, white = anchor(y, torch.full((30,), t, dtype=torch.float64))
        assert torch.allclose(u, -law.log_prob(y), rtol=1e-9, atol=1e-9)
        total = covariance + t * torch.eye(4).double()
        root = torch.from_numpy(sqrtm(total.numpy())).real
        assert torch.allclose(white @ root, y - anchor.mean, atol=1e-9)
        gain = covariance @ torch.linalg.inv(total)
        assert torch.allclose(wiener, (y - anchor.mean) @ gain.T, atol=1e-9)
        share = anchor.residual_scale(torch.tensor([t], dtype=torch.float64))
        assert float(share) == pytest.approx(float((gain.trace() / 4).sqrt()))
    draws = anchor.draw(200_000, 0.5, generator(5, "draw"))
    total = covariance + 0.5 * torch.eye(4).double()
    white = (draws - anchor.mean) @ torch.linalg.inv(torch.linalg.cholesky(total)).T
    assert_law(white, torch.special.ndtr, power=0.01)


def test_smoothed_gaussian_wants_two_rows():
    with pytest.raises(UserError, match="2 rows or more"):
        SmoothedGaussian(2).fit(torch.zeros(1, 2))


def test_s1_silu_to_the_third_order():
    x = torch.linspace(-9, 9, 13, dtype=torch.float64).requires_grad_(True)
    assert torch.equal(silu(x), nn.functional.silu(x))
    assert gradcheck(silu, (x,), rtol=1e-6)
    assert gradgradcheck(silu, (x,), rtol=1e-6)

    def second(v):
        (a,) = torch.autograd.grad(silu(v).sum(), v, create_graph=True)
        return torch.autograd.grad(a.square().sum(), v, create_graph=True)[0]

    assert gradcheck(second, (x,), rtol=1e-6)

    def derivatives(f, order):
        v, out = x, f(x)
        for _ in range(order):
            (out,) = torch.autograd.grad(out.sum(), v, create_graph=True)
        return out.detach()

    for order in (1, 2, 3):
        assert torch.allclose(derivatives(silu, order), derivatives(nn.functional.silu, order), atol=1e-12)


def test_silu_without_a_graph_gives_the_same_second_derivative():
    x = torch.randn(50, generator=generator(6, "x"), dtype=torch.float64).requires_grad_(True)
    (a,) = torch.autograd.grad(silu(x).sum(), x, create_graph=True)
    (plain,) = torch.autograd.grad((3 * a).sum(), x, retain_graph=True)  # grad mode off inside: the in-place branch
    (graph,) = torch.autograd.grad((3 * a).sum(), x, create_graph=True)
    assert torch.allclose(plain, graph, atol=1e-12)


def _normal_cdf(v):
    return 0.5 * (1 + math.erf(v / math.sqrt(2)))


def between(low, high):
    """The noise levels of an energy with these deviations."""
    return NoiseRange.of(types.SimpleNamespace(t_min=low**2, t_max=high**2))


def _level_cdf(levels, share, low=0.02, high=5.0):
    """The stated law of log sigma: share of a truncated normal, the rest uniform."""
    low, high = math.log(low), math.log(high)
    middle, spread = math.log(levels.median), levels.spread
    a, b = _normal_cdf((low - middle) / spread), _normal_cdf((high - middle) / spread)

    def cdf(t):
        s = t.double().log() / 2
        normal = (torch.special.ndtr((s - middle) / spread) - a) / (b - a)
        return (share * normal + (1 - share) * (s - low) / (high - low))[:, None]

    return cdf


@pytest.mark.parametrize(("share", "rows"), [(0.0, 64), (0.5, 64), (0.75, 64), (1.0, 64), (0.75, 7), (0.75, 1)])
def test_noise_levels_follow_their_stated_law(share, rows):
    levels, ends = NoiseLevels(median=0.3, spread=1.2, share=share), between(0.02, 5.0)
    t = torch.cat([levels.draw(rows, generator(7, "levels", k), ends) for k in range(96_000 // max(rows, 10))])
    assert_law(t, _level_cdf(levels, share), power=0.03)
    moved = _level_cdf(NoiseLevels(median=0.36), share) if share else _level_cdf(levels, share, high=6.0)
    with pytest.raises(AssertionError, match="exceed"):
        assert_law(t, moved, power=0.03)


class RandomSubset(NoiseLevels):
    """The mutant: strata of the whole batch, a random subset of them for each part, the log-normal rows first."""

    def draw(self, n, generator, between):
        v = (torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
        order, num_normal = torch.randperm(n, generator=generator), round(self.share * n)
        (low, high), middle = (0.5 * math.log(t) for t in between[:2]), math.log(self.median)
        a, b = (_normal_cdf((end - middle) / self.spread) for end in (low, high))
        log_normal = middle + self.spread * torch.special.ndtri(a + (b - a) * v[order[:num_normal]])
        return torch.exp(2 * torch.cat([log_normal, low + (high - low) * v[order[num_normal:]]])).float()


def _empty(cls, share, rows, batches=100):
    """(log-uniform, log-normal): the mean number of a part's own strata without a draw, by batch."""
    narrow, wide = (cls(median=0.3, share=share, spread=spread) for spread in (1e-7, 1.2))
    ends = between(0.02, 5.0)
    low, high = math.log(0.02), math.log(5.0)
    a, b = (_normal_cdf((end - math.log(0.3)) / 1.2) for end in (low, high))
    num_normal, empty = int(share * rows), torch.zeros(2)
    for k in range(batches):
        s = narrow.draw(rows, generator(10, "strata", k), ends).double().log() / 2
        s = s[(s - math.log(0.3)).abs() > 3e-6]  # what is left are the log-uniform draws
        empty[0] += len(s) - len(((s - low) / (high - low) * len(s)).long().unique())
        s = wide.draw(rows, generator(10, "strata", k), ends).double().log() / 2
        v = (torch.special.ndtr((s - math.log(0.3)) / 1.2) - a) / (b - a)
        found = (v * num_normal).long().clamp(max=num_normal - 1)  # the log-uniform draws among them fill none
        empty[1] += num_normal - len(found.unique()) if num_normal else 0
    return empty / batches


@pytest.mark.parametrize(
    ("share", "rows"), [(0.75, 64), (0.5, 64), (0.25, 96), (0.0, 63), (1.0, 63), (0.75, 4), (1.0, 1)]
)
def test_each_part_of_the_noise_levels_is_stratified_on_its_own(share, rows):
    assert _empty(NoiseLevels, share, rows).tolist() == [0, 0]


@pytest.mark.parametrize("rows", [63, 33, 7, 1])
def test_the_log_uniform_part_is_stratified_and_of_its_share_in_odd_batches(rows):
    assert float(_empty(NoiseLevels, 0.75, rows)[0]) == 0
    narrow = NoiseLevels(median=0.3, spread=1e-7, share=0.75)
    draws = [narrow.draw(rows, generator(11, "share", k), between(0.02, 5.0)).double().log() / 2 for k in range(1000)]
    counts = torch.tensor([float(((s - math.log(0.3)).abs() > 3e-6).sum()) for s in draws])
    assert set(counts.tolist()) <= {math.floor(0.25 * rows), math.ceil(0.25 * rows)}
    assert_near(counts.mean(), 0.25 * rows, counts.std() / math.sqrt(1000))


def test_the_mutant_whose_parts_are_a_random_subset_of_the_strata_is_rejected():
    uniform, normal = _empty(RandomSubset, 0.75, 64).tolist()
    assert uniform > 4  # of 16; independent draws leave 5.7
    assert normal > 4


def test_rows_do_not_know_their_level_from_their_place():
    """Other code takes the first rows of a batch: their levels follow the whole law."""
    cdf, ends = _level_cdf(NoiseLevels(), 0.5), between(0.02, 5.0)

    def first(cls):
        return torch.cat([cls(share=0.5).draw(64, generator(12, "place", k), ends)[:16] for k in range(1000)])

    assert_law(first(NoiseLevels), cdf, power=0.022)
    with pytest.raises(AssertionError, match="exceed"):
        assert_law(first(RandomSubset), cdf, power=0.022)


@pytest.mark.parametrize("median", [5.0, 0.008])  # far outside, where almost nothing of the log-normal is left
def test_noise_levels_stay_in_bounds_and_no_level_gets_a_lump(median):
    ends = between(0.2, 0.4)
    t = NoiseLevels(median=median, spread=0.3).draw(10_000, generator(8, "bounds"), ends)
    assert ends.t_min * (1 - 1e-6) <= float(t.min()) < float(t.max()) <= ends.t_max * (1 + 1e-6)
    assert int(t.unique(return_counts=True)[1].max()) < 30
    assert (float(t.median()) > 0.3**2) == (median > 0.3)  # most are at the end that is nearer to it


@pytest.mark.parametrize(
    ("argument", "wrong"),
    [
        ("share", {"share": 1.5}),
        ("median", {"median": 0.0}),
        ("spread", {"spread": 0.0}),
        ("spread", {"spread": math.inf}),
    ],
)
def test_settings_of_the_noise_levels_are_checked(argument, wrong):
    with pytest.raises(UserError) as caught:
        NoiseLevels(**wrong)
    assert caught.value.argument == argument


@pytest.mark.parametrize(("argument", "value"), [("scale", 0.0), ("scale", -1.0), ("time_weight", -0.1)])
def test_settings_of_dual_score_matching_are_checked(argument, value):
    with pytest.raises(UserError) as caught:
        DualScoreMatching(**{argument: value})
    assert caught.value.argument == argument


def test_noise_levels_are_stratified():
    """A batch's mean level varies less than independent draws would let it."""
    levels, ends = NoiseLevels(share=0.0), between(0.02, 20.0)
    means = torch.stack([levels.draw(64, generator(9, "strata", k), ends).log().mean() for k in range(400)])
    independent = math.log(ends.t_max / ends.t_min) / math.sqrt(12 * 64)
    assert float(means.std()) < 0.5 * independent


WITHOUT = [
    ({}, "energy"),
    ({"t_max": 1.0}, "energy"),
    ({"t_min": 0.0, "t_max": 1.0}, "t_min"),
    ({"t_min": 2.0, "t_max": 1.0}, "t_min=2.0, t_max=1.0"),
]


@pytest.mark.parametrize(("t", "argument"), WITHOUT)
def test_an_energy_without_noise_levels_is_refused(t, argument):
    with pytest.raises(UserError) as caught:
        DualScoreMatching().init(types.SimpleNamespace(**t), torch.zeros(2, D), generator(0, "init"))
    assert caught.value.argument == argument


def test_the_power_of_these_tests():
    assert dkw_eps(96_000, 1) < 0.01
