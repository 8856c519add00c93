"""The contract of every sampler in `thalweg.sampler`, found by walking it; then the loop and its errors.

A class is a sampler if it has a public `step`. It is a frozen, keyword-only dataclass, built by `example()`
or from its defaults; an `AnnealedSampler` takes an energy U(y, t) with noise levels.
"""

import dataclasses
import importlib
import inspect
import pkgutil
from typing import Protocol

import pytest
import torch
from torch import Tensor, nn

import thalweg.sampler
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.analytic import Gaussian
from thalweg.energy.networks.conv import ConvEnergy
from thalweg.energy.rbm import RBMEnergy
from thalweg.sampler.base import AnnealedSampler, GradientOnly, Info, Sampler, require_match
from thalweg.sampler.chain import of_block, run_chain, transitions
from thalweg.sampler.gibbs import Gibbs
from thalweg.sampler.gibbs_with_gradients import GibbsWithGradients
from thalweg.sampler.hmc import HMC
from thalweg.sampler.langevin import MALA, ULA
from thalweg.sampler.replica_exchange import ReplicaExchange
from thalweg.sampler.schedule import Linear
from thalweg.sampler.underdamped import UnderdampedLangevin


def find_samplers() -> list[type]:
    found = []
    for module in pkgutil.walk_packages(thalweg.sampler.__path__, "thalweg.sampler."):
        for name, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            mine = cls.__module__ == module.name and not name.startswith("_")
            if mine and not inspect.isabstract(cls) and hasattr(cls, "step") and Protocol not in cls.__bases__:
                found.append(cls)
    return found


SAMPLERS = find_samplers()


def build(cls: type):
    return cls.example() if hasattr(cls, "example") else cls()


def energy_for(sampler):
    if isinstance(sampler, Gibbs | GibbsWithGradients):
        torch.manual_seed(0)
        return RBMEnergy.example()
    return SmoothedNormal() if isinstance(sampler, AnnealedSampler) else Gaussian.example()


class SmoothedNormal:
    """Standard normal data at every noise level."""

    t_min, t_max = 0.02**2, 5.0**2

    def __call__(self, y, t):
        return 0.5 * (y.square().sum(1) / (1 + t) + y.shape[1] * torch.log1p(t))

    def prior(self, n, gen):
        return (1 + self.t_max) ** 0.5 * torch.randn(n, 2, generator=gen)

    def prior_log_prob(self, y):
        return -self(y, y.new_full((len(y),), self.t_max))


def leaves(tree) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, tuple | list) else []


def positions(n=4, of=None):
    x = torch.randn(n, 2, generator=generator(0, "x"))
    return (x > 0).float() if isinstance(of, GibbsWithGradients) else x


def test_the_walk_finds_them():
    assert {ULA, MALA, HMC, UnderdampedLangevin, ReplicaExchange, GibbsWithGradients} <= set(SAMPLERS)
    assert {cls.__name__ for cls in SAMPLERS if isinstance(build(cls), AnnealedSampler)} >= {"Heun", "Multistep"}


@pytest.mark.parametrize("cls", SAMPLERS)
def test_a_sampler_keeps_what_it_declares(cls):
    """Its parts are there; and one that says so asks for gradients alone, never for an energy's value."""
    sampler = build(cls)
    assert isinstance(sampler, Sampler)
    energy = energy_for(sampler)
    require_match(sampler, energy)
    require_match(of_block(sampler, 20).sampler, energy)
    if isinstance(sampler, GradientOnly) and sampler.gradient_only:
        lifted = type("Lifted", (), {"t_min": 0.02**2, "t_max": 25.0, "__call__": lambda self, *a: energy(*a) + 1000})()
        ends = [next(transitions(sampler, e, positions(), generator(2, "noise")))[0].x for e in (energy, lifted)]
        assert torch.allclose(*ends, atol=1e-3)


@pytest.mark.parametrize("cls", SAMPLERS)
def test_a_sampler_and_an_energy_of_another_kind_are_refused(cls):
    sampler = build(cls)
    annealed = isinstance(sampler, AnnealedSampler)
    with pytest.raises(UserError) as caught:
        require_match(sampler, Gaussian.example() if annealed else SmoothedNormal())
    assert caught.value.argument == ("energy" if annealed else "sampler")
    if annealed:
        with pytest.raises(UserError) as caught:
            sampler.init(Gaussian.example(), positions())
        assert caught.value.argument == "energy"


def test_a_kernel_with_a_number_of_steps_is_not_yet_annealed():
    class Hamiltonian(ULA):
        num_steps = 10

    require_match(Hamiltonian(step_size=0.1), Gaussian.example())
    assert not isinstance(Hamiltonian(step_size=0.1), AnnealedSampler)


@pytest.mark.parametrize("cls", SAMPLERS)
def test_frozen_keyword_only_dataclass(cls):
    assert dataclasses.is_dataclass(cls)
    assert all(f.kw_only for f in dataclasses.fields(cls) if f.init)
    sampler = build(cls)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(sampler, dataclasses.fields(cls)[0].name, 0)


@pytest.mark.parametrize("cls", SAMPLERS)
def test_step_is_pure(cls):
    """Same state and noise, same result; the state, the noise and the global generator are left alone."""
    sampler = build(cls)
    energy, x = energy_for(sampler), positions(of=sampler)
    state = sampler.init(energy, x)
    noise = sampler.draw(state, generator(1, "noise"))
    before, rng = [leaf.clone() for leaf in leaves((state, noise))], torch.random.get_rng_state()
    first, info = sampler.step(energy, state, noise)
    second, _ = sampler.step(energy, state, noise)
    assert all(torch.equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, leaves((state, noise)), strict=True))
    assert torch.equal(rng, torch.random.get_rng_state())
    assert torch.equal(x, positions(of=sampler))
    assert type(first) is type(state)
    assert isinstance(first, tuple)
    assert isinstance(info, Info)
    assert info.acceptance.shape == info.grad_norm.shape == (4,)


@pytest.mark.parametrize("cls", SAMPLERS)
def test_draw_is_the_only_randomness(cls):
    sampler = build(cls)
    state = sampler.init(energy_for(sampler), positions(of=sampler))
    one, same, other = (sampler.draw(state, generator(seed, "noise")) for seed in (1, 1, 2))
    assert isinstance(one, tuple)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not one or any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", SAMPLERS)
def test_positions_stay_detached_finite_and_of_their_type(cls, dtype):
    sampler = build(cls)
    energy, x = energy_for(sampler), positions(of=sampler).to(dtype)
    steps = transitions(sampler, energy, x, generator(2, "noise"))
    for _ in range(5):
        state, info = next(steps)
    assert state.x.shape == x.shape
    assert state.x.dtype == dtype
    assert not state.x.requires_grad
    assert bool(state.x.isfinite().all())
    assert bool(((info.acceptance >= 0) & (info.acceptance <= 1)).all())


@pytest.mark.parametrize("cls", SAMPLERS)
def test_chains_do_not_see_each_other(cls):
    """Changing one chain's start leaves the others where they were."""
    sampler = build(cls)
    energy, x = energy_for(sampler), positions(of=sampler)
    y = x.clone()
    y[0] = 1 - y[0]
    ends = []
    for start in (x, y):
        steps = transitions(sampler, energy, start, generator(3, "noise"))
        ends.append([next(steps)[0].x for _ in range(3)][-1])
    assert torch.allclose(ends[0][1:], ends[1][1:], rtol=1e-6)


FALLING = Linear(first=0.4, last=0.1, num_steps=20)


@pytest.mark.parametrize(
    "sampler",
    [ULA(step_size=0.1), MALA(step_size=0.1), HMC(step_size=FALLING, num_leapfrog=2, temperature=FALLING)],
)
def test_run_chain_goes_on_where_it_stopped(sampler):
    energy, x = Gaussian.example(), positions().double()
    whole = run_chain(sampler, energy, x, num_steps=20, seed=5)
    half = run_chain(sampler, energy, x, num_steps=8, seed=5)
    assert torch.equal(run_chain(sampler, energy, half, num_steps=12, seed=5, start=8), whole)
    assert not torch.equal(run_chain(sampler, energy, x, num_steps=20, seed=6), whole)


def test_run_chain_leaves_its_input_alone():
    x = positions().requires_grad_(True)
    end = run_chain(ULA(step_size=0.1), Gaussian.example(), x, num_steps=0)
    assert torch.equal(end, x)
    assert not end.requires_grad
    end += 1
    assert torch.equal(x, positions())
    with torch.inference_mode():
        assert run_chain(ULA(step_size=0.1), Gaussian.example(), positions(), num_steps=2).isfinite().all()


def test_bf16_is_the_network_only():
    torch.manual_seed(0)
    energy = ConvEnergy(shape=(1, 8, 8), channels=(4, 8))
    x = torch.rand(3, 1, 8, 8)
    seen = []
    hook = energy.head.register_forward_hook(lambda _module, _args, out: seen.append(out.dtype))
    fp32 = run_chain(MALA(step_size=1e-3), energy, x, num_steps=5)
    bf16 = run_chain(MALA(step_size=1e-3), energy, x, num_steps=5, precision="bf16")
    with torch.autocast("cpu", torch.bfloat16):
        run_chain(MALA(step_size=1e-3), energy, x, num_steps=5)
    hook.remove()
    assert set(seen[:6]) == {torch.float32}
    assert seen[6:18] == [torch.float32, torch.bfloat16] * 6, "energies in float32 beside gradients in bfloat16"
    assert set(seen[18:]) == {torch.float32}, "whatever the caller has on"
    assert len(seen) == 24, "MALA takes one gradient a step, and one to begin with"
    assert bf16.dtype == torch.float32
    assert torch.allclose(fp32, bf16, atol=2e-3)
    assert not torch.equal(fp32, bf16)


@pytest.mark.parametrize(
    "sampler", [MALA(step_size=0.3), HMC(step_size=0.5, num_leapfrog=2), UnderdampedLangevin(step_size=0.5)]
)
def test_what_is_not_finite_is_rejected(sampler):
    def walled(x):
        return torch.where(x[:, 0] > 0, float("nan"), 0.5 * x.square().sum(1))

    def abyss(x):
        return torch.where(x[:, 0] > 0, -float("inf"), 0.5 * x.square().sum(1))

    x = torch.full((500, 2), -0.1)
    for energy in (walled, abyss):
        steps = transitions(sampler, energy, x, generator(4, "noise"))
        for _ in range(10):
            state, info = next(steps)
            assert bool((state.x[:, 0] <= 0).all())
            assert bool(state.u.isfinite().all())
            assert bool(info.acceptance.isfinite().all())
        assert not torch.equal(state.x, x)


def test_ula_forms():
    x = positions()
    energy = Gaussian.example()
    cold = run_chain(ULA(step_size=0.1, temperature=0.0), energy, x, num_steps=400)
    assert torch.allclose(cold, energy.mean.float().expand_as(x), atol=1e-4)
    boxed = run_chain(ULA(step_size=0.5, clamp=(0.0, 1.0)), energy, x, num_steps=20)
    assert float(boxed.min()) >= 0
    assert float(boxed.max()) <= 1
    number = run_chain(MALA(step_size=0.25), energy, x, num_steps=3)
    assert torch.equal(run_chain(MALA(step_size=torch.tensor(0.25)), energy, x, num_steps=3), number)


GOOD = {"sampler": ULA(step_size=0.1), "energy": Gaussian.example(), "x": positions(), "num_steps": 2}


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"x": torch.zeros(3)}, "x"),
        ({"x": [[0.0]]}, "x"),
        ({"x": torch.zeros(3, 2, dtype=torch.int64)}, "x"),
        ({"x": torch.zeros(3, 2, dtype=torch.bfloat16)}, "x"),
        ({"x": torch.full((3, 2), float("nan"))}, "x"),
        ({"num_steps": -1}, "num_steps"),
        ({"num_steps": 1.5}, "num_steps"),
        ({"num_steps": True}, "num_steps"),
        ({"start": -2}, "start"),
        ({"precision": "fp16"}, "precision"),
        ({"sampler": None}, "sampler"),
        ({"sampler": ULA}, "sampler"),
        ({"energy": None}, "energy"),
        ({"energy": nn.Linear}, "energy"),
        ({"energy": lambda x: x.sum(1, keepdim=True)}, "energy"),
        ({"energy": lambda x: x.sum()}, "energy"),
        ({"energy": lambda x: 1.0}, "energy"),
        ({"energy": lambda x: x.detach().numpy().sum(1)}, "energy"),
        ({"energy": lambda x: torch.zeros(len(x))}, "energy"),
        ({"energy": torch.no_grad()(Gaussian.example())}, "energy"),
        ({"energy": lambda x: x.sum(1) / torch.tensor([0.0, 1.0, 0.0, 1.0])}, "energy"),
    ],
)
def test_run_chain_errors_say_what_is_wrong(change, argument):
    with pytest.raises(UserError) as caught:
        run_chain(**{**GOOD, **change})
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sampler", [ULA(step_size=0.1), MALA(step_size=0.1)])
@pytest.mark.parametrize("energy", [lambda x: 1.0, lambda x: torch.zeros(len(x)), lambda x: x])
def test_transitions_say_what_is_wrong_with_an_energy(sampler, energy):
    with pytest.raises(UserError) as caught:
        next(transitions(sampler, energy, positions(), generator(0, "noise")))
    assert caught.value.argument == "energy"


def test_a_chain_that_leaves_the_finite_is_looked_at_once():
    looks = []

    class Spied(torch.Tensor):
        def isfinite(self):
            looks.append(1)
            return super().isfinite()

    end = run_chain(ULA(step_size=1.0), lambda x: (x**4).sum(1).as_subclass(Spied), 50 * positions(), num_steps=9)
    assert len(looks) == 1
    assert not bool(end.isfinite().all())


@pytest.mark.parametrize("cls", SAMPLERS)
def test_the_first_rows_of_a_block_get_the_noise_that_they_have_in_it(cls):
    sampler = of_block(build(cls), 20)
    x, ends = positions(20, build(cls)), {}
    for n in (1, 3, 19, 20):
        steps = transitions(sampler, energy_for(sampler.sampler), x[:n], generator(3, "noise"))
        ends[n] = [next(steps)[0].x for _ in range(3)][-1]
    plain = transitions(build(cls), energy_for(sampler.sampler), x, generator(3, "noise"))
    assert torch.equal(ends[20], [next(plain)[0].x for _ in range(3)][-1])
    assert all(torch.allclose(end, ends[20][:n], rtol=1e-6) for n, end in ends.items())


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: ULA(step_size=0.0), "step_size"),
        (lambda: ULA(step_size=float("inf")), "step_size"),
        (lambda: ULA(step_size=float("nan")), "step_size"),
        (lambda: ULA(step_size=torch.tensor(-1.0)), "step_size"),
        (lambda: ULA(step_size=0.1, temperature=-1.0), "temperature"),
        (lambda: ULA(step_size=0.1, clamp=(1.0, 0.0)), "clamp"),
        (lambda: MALA(step_size=-0.1), "step_size"),
        (lambda: MALA(step_size=0.1, temperature=0.0), "temperature"),
        (lambda: MALA(step_size=0.1, temperature=float("inf")), "temperature"),
        (lambda: MALA(step_size=0.1, clip=0.0), "clip"),
        (lambda: Gibbs(num_hidden=0), "num_hidden"),
        (lambda: HMC(step_size=0.0, num_leapfrog=3), "step_size"),
        (lambda: HMC(step_size=0.1, num_leapfrog=0), "num_leapfrog"),
        (lambda: HMC(step_size=0.1, num_leapfrog=3, temperature=-1.0), "temperature"),
        (lambda: HMC(step_size=0.1, num_leapfrog=3, jitter=1.5), "jitter"),
        (lambda: UnderdampedLangevin(step_size=-1.0), "step_size"),
        (lambda: UnderdampedLangevin(step_size=0.1, friction=0.0), "friction"),
        (lambda: UnderdampedLangevin(step_size=0.1, temperature=0.0), "temperature"),
        (lambda: GibbsWithGradients(temperature=0.0), "temperature"),
        (lambda: ReplicaExchange(sampler=MALA(step_size=0.1), temperatures=(1.0,)), "temperatures"),
        (lambda: ReplicaExchange(sampler=MALA(step_size=0.1), temperatures=3.0), "temperatures"),
        (lambda: ReplicaExchange(sampler=MALA(step_size=0.1), temperatures=(2.0, 4.0)), "temperatures"),
        (lambda: ReplicaExchange(sampler=MALA(step_size=0.1), temperatures=(1.0, 4.0, 3.0)), "temperatures"),
        (lambda: ReplicaExchange(sampler=MALA(step_size=0.1), temperatures=(1.0, float("inf"))), "temperatures"),
        (lambda: ReplicaExchange(sampler=MALA(step_size=0.1, temperature=2.0)), "sampler"),
        (lambda: ReplicaExchange(sampler=Gibbs(num_hidden=3)), "sampler"),
    ],
)
def test_sampler_errors_name_the_argument(make, argument):
    with pytest.raises(UserError) as caught:
        make()
    assert caught.value.argument == argument
