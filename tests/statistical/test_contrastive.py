"""Contrastive divergence and its buffer against exact expectations; every check rejects a named mutant."""

import dataclasses
import inspect
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.engine.freeze import normalise
from thalweg.objective.base import Batch
from thalweg.objective.contrastive import divergence as contrastive
from thalweg.objective.contrastive import replay_buffer as buffer
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.sampler.base import Info
from thalweg.sampler.langevin import MALA, ULA, Position


def mutant(module, old, new):
    """The module with one piece of its source replaced."""
    source = inspect.getsource(module)
    assert source.count(old) == 1, old
    made = types.ModuleType(f"mutant_of_{module.__name__.rpartition('.')[2]}")
    sys.modules[made.__name__] = made
    exec(compile(source.replace(old, new), made.__name__, "exec"), made.__dict__)
    return made


def with_buffer(old, new):
    """The objective's module over a mutated buffer."""
    made = mutant(contrastive, "import health, replay_buffer, starts\n", "import health, starts\n")
    made.replay_buffer = mutant(buffer, old, new)
    return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlteredTexts:
    """A sampler that walks uphill, or with its Gaussian noise scaled."""

    sampler: Any
    slope: float = 1.0
    scale: float = 1.0

    def init(self, energy, x):
        return self.sampler.init(lambda y: self.slope * energy(y), x)

    def draw(self, state, generator):
        z, *rest = self.sampler.draw(state, generator)
        return self.scale * z, *rest

    def step(self, energy, state, noise):
        return self.sampler.step(lambda y: self.slope * energy(y), state, noise)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift:
    """x + 1000, and NaN where the noise says so: a chain whose every move is known."""

    poison: int = -1

    def init(self, energy, x):
        return Position(x)

    def draw(self, state, generator):
        return (torch.arange(len(state.x)) == self.poison,)

    def step(self, energy, state, noise):
        one = state.x.new_ones(len(state.x))
        return Position(torch.where(noise[0][:, None], torch.nan, state.x + 1000)), Info(one, one)


class Quadratic(nn.Module):
    """1/2 x'Px - b'x with P symmetric."""

    def __init__(self, dim, dtype=torch.float64):
        super().__init__()
        self.p, self.b = (
            nn.Parameter(torch.eye(dim, dtype=dtype)),
            nn.Parameter(torch.zeros(dim, dtype=dtype)),
        )

    def forward(self, x):
        return 0.25 * (x @ (self.p + self.p.T) * x).sum(1) - x @ self.b


def one(objective, energy, x, seed=0, state=None):
    """(loss, next state, metrics, noise) of one step."""
    batch = Batch(x)
    state = objective.init(energy, x, generator(0, "init")) if state is None else state
    noise = objective.draw(state, batch, generator(0, "draw", seed), 0.0)
    return *objective.loss(energy, state, batch, noise), noise


def z_scores(objective, energy, blocks, want=0.0):
    """The mean gradient less its expectation, over its error bar from independent batches."""
    parts = []
    for k, x in enumerate(blocks):
        loss, *_ = one(objective, energy, x, k)
        parts.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(energy.parameters()))]))
    g = torch.stack(parts)
    return ((g.mean(0) - want) / (g.std(0) / len(g) ** 0.5)).abs().max()


# The sign


def descent(module):
    """How much one step of descent lowers the data's energy relative to the chains'."""
    energy, x = Quadratic(2), 3 + torch.randn(64, 2, generator=generator(0, "x"), dtype=torch.float64)
    cd = module.ContrastiveDivergence(
        sampler=ULA(step_size=1e-4), start="noise", initial="uniform", low=-2.0, high=-1.0, energy_penalty=0.0
    )
    loss, _, _, noise = one(cd, energy, x)
    gap = lambda: (energy(x).mean() - energy(noise[2]).mean()).item()  # noqa: E731
    before = gap()
    loss.backward()
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter -= 0.01 * parameter.grad
    return gap() - before


def test_descent_lowers_the_energy_of_data():
    assert descent(contrastive) < -0.1
    assert descent(mutant(contrastive, "real_mean - fake_mean + ", "fake_mean - real_mean + ")) > 0.1


# The negative phase is exact: CD-k in closed form, and no bias when the chains begin at the model's own law

H, LAMBDA, B = 0.1, 0.7, 0.3


def cd_z(module, num_steps, **alter):
    """|z| of the mean CD-k gradient in (P, b) against its closed form, for exponential (skewed) data."""
    energy = Quadratic(1)
    energy.p.data.fill_(LAMBDA)
    energy.b.data.fill_(B)
    a = (1 - H * LAMBDA) ** num_steps
    mean, variance = a + B / LAMBDA * (1 - a), a**2 + 2 * H * (1 - a**2) / (1 - (1 - H * LAMBDA) ** 2)
    want = torch.tensor([0.5 * (2 - variance - mean**2), mean - 1], dtype=torch.float64)
    x = torch.empty(100_000, 1, dtype=torch.float64).exponential_(generator=generator(0, "exponential"))
    sampler = AlteredTexts(sampler=ULA(step_size=H), **alter)
    cd = module.ContrastiveDivergence(sampler=sampler, num_steps=num_steps, start="data", energy_penalty=0.0)
    return z_scores(cd, energy, x.chunk(50), want)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_cd_k_has_its_exact_expectation(num_steps):
    assert cd_z(contrastive, num_steps) < 5


def test_cd_k_rejects_mutants():
    assert cd_z(contrastive, 4, slope=-1.0) > 10
    assert cd_z(contrastive, 4, scale=0.5**0.5) > 10
    assert cd_z(mutant(contrastive, "in range(num)", "in range(num - 1)"), 4) > 10
    assert cd_z(mutant(contrastive, "tuple(kind[k]", "tuple(kind[0]"), 4) > 10
    assert cd_z(mutant(contrastive, "real_mean - fake_mean + ", "fake_mean - real_mean + "), 4) > 10


class LogGamma(nn.Module):
    """sum_i w_i exp(a_i x_i) - k_i x_i: exact draws are log Gamma(k) / a at w = 1; skewed."""

    def __init__(self):
        super().__init__()
        self.k = nn.Parameter(torch.tensor([0.8, 2.0, 5.0], dtype=torch.float64))
        self.w, self.a = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))

    def forward(self, x):
        return (self.w * (self.a * x).exp() - self.k * x).sum(1)

    def sample(self, n):
        torch.manual_seed(0)
        return torch.distributions.Gamma(self.k.detach(), torch.ones(3).double()).sample((n,)).log()


def stationary_z(**alter):
    energy = LogGamma()
    cd = ContrastiveDivergence(
        sampler=AlteredTexts(sampler=MALA(step_size=0.1), **alter), num_steps=3, start="data", energy_penalty=0.0
    )
    return z_scores(cd, energy, energy.sample(100_000).chunk(50))


def test_chains_from_exact_draws_leave_no_gradient():
    assert stationary_z() < 5
    assert stationary_z(slope=-1.0) > 10
    assert stationary_z(scale=0.5**0.5) > 10


# The buffer


def shifted(module=contrastive, poison=-1, reinit=0.0, x=None, **settings):
    settings = {"num_steps": 2, "buffer_size": 40, "high": 500.0, "energy_penalty": 0.0} | settings
    return module.ContrastiveDivergence(sampler=Shift(poison=poison), reinit=reinit, **settings)


X = torch.randn(8, 1, generator=generator(0, "x"), dtype=torch.float64)


def lost(module):
    """How many of 40 chains (known by their start) are lost or misplaced after 30 visits."""
    cd, energy = shifted(module), Quadratic(1)
    state = begin = cd.init(energy, X, generator(0, "init"))
    for k in range(30):
        _, state, _, _ = one(cd, energy, X, k, state)
    return ((state.x - 1000 * (state.age / 1)[:, None] - begin.x).abs() > 1e-6).sum()


def test_chains_return_to_their_slots():
    assert lost(contrastive) == 0
    assert lost(with_buffer("index_copy(0, visit.slots, new)", "index_copy(0, visit.slots.flip(0), new)")) > 10


def test_only_the_visited_slots_change_and_the_old_state_does_not():
    def intact(module):
        cd, energy = shifted(module), Quadratic(1)
        state = cd.init(energy, X, generator(0, "init"))
        before = [v.clone() for v in state[:3]]
        _, after, _, noise = one(cd, energy, X, 0, state)
        others = torch.ones(40, dtype=torch.bool).index_fill(0, noise[0], False)
        assert all(torch.equal(a[others], b[others]) for a, b in zip(after[:3], before, strict=True))
        return all(torch.equal(a, b) for a, b in zip(state[:3], before, strict=True))

    assert intact(contrastive)
    assert not intact(with_buffer("old.index_copy(", "old.index_copy_("))


def renewed(module, reinit=0.05):
    """(z of the renewed share over 400 draws of 40 slots out of 40, whether slots are distinct)."""
    cd, x = shifted(module, reinit=reinit), X.repeat(5, 1)
    state = cd.init(None, x, generator(0, "init"))
    draws = [cd.draw(state, Batch(x), generator(0, "draw", k), 0.0) for k in range(400)]
    count = sum(d[1].sum().item() for d in draws)
    distinct = all(len(d[0].unique()) == 40 for d in draws)
    return abs(count - 16_000 * reinit) / (16_000 * reinit * (1 - reinit)) ** 0.5, distinct


def test_slots_are_distinct_and_the_right_share_is_renewed():
    z, distinct = renewed(contrastive)
    assert z < 5
    assert distinct
    assert renewed(mutant(contrastive, "< self.reinit", "< 1.5 * self.reinit"))[0] > 5
    with_repeats = with_buffer("torch.randperm(size, generator", "torch.randint(size, (size,), generator")
    assert not renewed(with_repeats)[1]


def test_a_renewed_chain_begins_at_its_fresh_position():
    cd = shifted(reinit=0.5)
    _, state, metrics, (slots, renew, fresh, *_) = one(cd, Quadratic(1), X)
    assert 0 < renew.sum() < 8
    assert torch.equal(state.x[slots][renew], fresh[renew] + 1000 + 1000)
    assert (state.age[slots] == 2).all()
    assert metrics["buffer_age"] == state.age.float().mean()


def altered(module):
    """How far chains begin from where an augmentation by +7 puts them: those that go on, those begun anew."""
    cd = shifted(module, reinit=0.5, augment=lambda x, generator, progress: x + 7)
    begin = cd.init(Quadratic(1), X, generator(0, "init"))
    _, state, _, (slots, renew, fresh, *_) = one(cd, Quadratic(1), X, 0, begin)
    assert 0 < renew.sum() < 8
    moved = state.x[slots] - 2000
    return (moved - begin.x[slots] - 7)[~renew].abs().max().item(), (moved - fresh)[renew].abs().max().item()


def test_an_augmentation_alters_the_chains_that_go_on_and_no_other():
    assert max(altered(contrastive)) < 1e-9
    assert altered(mutant(contrastive, "visit, found)", "visit)"))[0] > 6
    assert altered(with_buffer("per_row(keep, visit.x), stored", "per_row(keep | True, visit.x), stored"))[1] > 6


@pytest.mark.parametrize("settings", [{"augment": 3}, {"augment": torch.nn.Identity(), "start": "data"}])
def test_an_augmentation_that_cannot_be_is_refused(settings):
    with pytest.raises(UserError, match="augment"):
        shifted(**settings)


def test_a_chain_that_diverges_is_begun_anew_and_disturbs_no_other():
    def state_and_loss(module, poison):
        cd, energy = shifted(module, poison=poison), Quadratic(1)
        loss, state, metrics, (slots, _, fresh, *_) = one(cd, energy, X)
        return loss, state, metrics, slots, fresh

    _, clean, _, _, _ = state_and_loss(contrastive, -1)
    loss, state, metrics, slots, fresh = state_and_loss(contrastive, 3)
    assert loss.isfinite()
    assert metrics["diverged"] == 1 / 8
    assert torch.equal(state.x[slots[3]], fresh[3])
    assert state.age[slots[3]] == 0
    others = torch.arange(40) != slots[3]
    assert torch.equal(state.x[others], clean.x[others])
    unmended = with_buffer("torch.where(per_row(finite, visit.x), chains.x, visit.x)", "chains.x")
    assert not state_and_loss(unmended, 3)[1].x.isfinite().all()


def test_a_batch_larger_than_the_buffer_is_refused():
    with pytest.raises(ValueError, match="buffer_size=4"):
        one(shifted(buffer_size=4), Quadratic(1), X)


# What the chain and the loss evaluate


def norms_after(module, num_steps):
    torch.manual_seed(0)
    net = nn.Sequential(normalise(nn.Linear(2, 6)), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0))
    calls = []
    net.register_forward_pre_hook(lambda m, _: calls.append(m.training))
    x = torch.randn(8, 2, generator=generator(0, "x"))
    one(module.ContrastiveDivergence(sampler=ULA(step_size=0.01), num_steps=num_steps, buffer_size=8), net, x)
    assert net.training
    return net[0].parametrizations.weight[0]._u.clone(), calls


def test_the_chain_holds_spectral_norms_still_and_the_loss_is_one_forward():
    (short, _), (long, calls) = norms_after(contrastive, 1), norms_after(contrastive, 10)
    assert torch.equal(short, long)
    assert calls == [False] * 10 + [True, False]  # the chain, the loss, the fresh starts' energy
    frozen = "with FrozenEnergy.of(energy) as fixed,"
    thawed = mutant(contrastive, frozen, "with __import__('contextlib').nullcontext(energy) as fixed,")
    assert not torch.equal(norms_after(thawed, 1)[0], norms_after(thawed, 10)[0])


def test_the_energy_of_noise_is_that_of_the_fresh_starts():
    cd, energy = shifted(reinit=0.5), Quadratic(1)
    begin = cd.init(energy, X, generator(0, "init"))
    _, _, metrics, (_, _, fresh, *_) = one(cd, energy, X, 0, begin)
    assert float(metrics["energy_noise"]) == pytest.approx(energy(fresh).mean().item())


def test_penalties_are_what_they_say():
    class Linear(nn.Module):
        def forward(self, x):
            return 2 * x.sum(1)

    cd = {"sampler": ULA(step_size=0.01), "start": "noise", "energy_penalty": 0.0}
    plain, *_ = one(ContrastiveDivergence(**cd), Linear(), X.repeat(1, 3))
    steep, *_ = one(ContrastiveDivergence(**cd | {"gradient_penalty": 0.5}), Linear(), X.repeat(1, 3))
    large, _, metrics, _ = one(ContrastiveDivergence(**cd | {"energy_penalty": 0.1}), Linear(), X.repeat(1, 3))
    torch.testing.assert_close(steep - plain, torch.tensor(0.5 * 12.0).double())
    assert large - plain > 0.1 * (metrics["energy_real"] ** 2 + metrics["energy_fake"] ** 2)
    torch.testing.assert_close(metrics["gap"], -plain)


def test_the_chain_grows_over_training():
    cd = shifted(num_steps=(1, 30))
    state = cd.init(None, X, generator(0, "init"))
    lengths = [len(cd.draw(state, Batch(X), generator(0, "d"), k / 90)[6]) for k in range(90)]
    assert lengths == [1 + k // 3 for k in range(90)]


def test_normal_starts_fit_the_data():
    x = torch.tensor([2.0, -1.0]) + torch.tensor([0.5, 3.0]) * torch.randn(4000, 2, generator=generator(0, "x"))
    cd = ContrastiveDivergence(sampler=ULA(step_size=0.01), initial="normal", buffer_size=20_000)
    start = cd.init(None, x, generator(0, "init")).x
    assert ((start.mean(0) - x.mean(0)).abs() < 5 * x.std(0) / 20_000**0.5).all()
    assert ((start.std(0) / x.std(0) - 1).abs() < 5 / 40_000**0.5).all()


# It learns


def learned(start, seed, **alter):
    """(P, b) fitted to 1,000 draws of a 2-D Gaussian, late steps averaged, and ULA's prediction."""
    scale = torch.tensor([[1.0, 0.0], [0.4, 1.0]], dtype=torch.float64)
    x = torch.randn(1000, 2, generator=generator(0, "x"), dtype=torch.float64) @ scale.T + 0.5
    x = x - x.mean(0) + 0.5
    energy = Quadratic(2)
    sampler = AlteredTexts(sampler=ULA(step_size=0.2), **alter)
    cd = ContrastiveDivergence(
        sampler=sampler,
        num_steps=3,
        start=start,
        initial="normal",
        buffer_size=1000,
        reinit=0.0,
        energy_penalty=0.0,
    )
    state = cd.init(energy, x, generator(seed, "init"))
    optimiser = torch.optim.SGD(energy.parameters(), lr=0.6)
    kept = []
    for k in range(160):
        noise = cd.draw(state, Batch(x), generator(seed, "draw", k), k / 160)
        loss, state, _ = cd.loss(energy, state, Batch(x), noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        optimiser.param_groups[0]["lr"] = 0.6 if k < 60 else 0.3
        if k >= 90:
            kept.append(torch.cat([0.5 * (energy.p + energy.p.T).flatten(), energy.b]).detach())
    # ULA at step h samples the covariance (P - h/2 P²)^-1: the fit makes that the sample's covariance.
    values, vectors = torch.linalg.eigh(torch.linalg.inv(x.T.cov(correction=0)))
    p = vectors * ((1 - (1 - 0.4 * values).sqrt()) / 0.2) @ vectors.T
    return torch.stack(kept).mean(0), torch.cat([p.flatten(), p @ x.mean(0)])


@pytest.mark.parametrize("start", ["data", "persistent"])
def test_it_learns_a_gaussian(start):
    runs = [learned(start, seed) for seed in range(4)]
    found, want = torch.stack([f for f, _ in runs]), runs[0][1]
    bar = found.std(0) / 4**0.5
    assert bar.max() < 0.02
    assert ((found.mean(0) - want).abs() < 5 * bar).all()
    cold, _ = learned(start, 0, scale=0.5**0.5)
    assert ((cold - want).abs() > 10 * bar).any()
