"""What a wrapper keeps: the capabilities that its class lists, where its energy has them, and no others."""

import copy
import importlib
import inspect
import pkgutil
from types import SimpleNamespace

import pytest
import torch

import thalweg.energy
import thalweg.normaliser
import thalweg.sampler
from thalweg.core.rng import generator
from thalweg.energy import base
from thalweg.energy.base import (
    Bipartite,
    Capability,
    HasGradient,
    HasNoiseLevels,
    HasShape,
    NoiseConditional,
    Wraps,
    energy_and_grad,
)
from thalweg.energy.engine import fused
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.noise_conditional.classifier import JointUNetEnergy
from thalweg.energy.noise_conditional.unet import UNetEnergy
from thalweg.energy.wrappers import AtNoise, Clamped, ClassifierGuidance, EnergyWrapper, FixedLabels, Sum, Tempered
from thalweg.normaliser.inputs import CheckedEnergy
from thalweg.sampler.annealed import Heun
from thalweg.sampler.chain import _Checked, run_chain
from thalweg.sampler.langevin import ULA
from thalweg.sampler.precision import AtPrecision
from thalweg.sampler.replica_exchange import _AtTemperatures

CAPABILITIES = [c for _, c in inspect.getmembers(base) if isinstance(c, Capability)]
X = torch.randn(9, 3, generator=generator(0, "x"))


class Everything:
    """An energy of vectors that offers whatever there is; `declines`: has no short way just now."""

    shape, t_min, t_max, num_classes, anchor, conditionals = (3,), 0.1, 4.0, 5, object(), object()
    inverse_temperature = torch.ones(())

    def __init__(self, declines=False):
        self.declines, self.short = declines, 0

    def __call__(self, x, *more):
        scale = torch.stack([m.to(x) for m in more]).sum(0) + 2 if more else 2
        return scale * (x**4).sum(1) + x.sin().sum(1)

    def value_and_grad(self, x, *more):
        if self.declines:
            return None
        self.short += 1
        scale = torch.stack([m.to(x) for m in more]).sum(0)[:, None] + 2 if more else 2
        return self(x, *more), scale * 4 * x**3 + x.cos()

    def value_and_grads(self, y, t):
        return None

    num_uniforms, normalised = 3, True

    def fit_parts(self, parts):
        return self

    def allowed(self, x):
        return x > 0

    def base_energy(self, x):
        return x.sum(1)

    def base_draws(self, uniforms):
        return uniforms

    def exact_draws(self, uniforms):
        return uniforms

    def prior(self, n, generator):
        return torch.zeros(n, 3)

    def prior_log_prob(self, y):
        return torch.zeros(len(y))

    num_outputs, num_states = 5, 2

    def log_z(self):
        return torch.zeros(())

    def outputs(self, x):
        return x

    def logits(self, x, *more):
        return x.cos() @ torch.ones(3, 5).cumsum(1)

    def sequence(self):
        return []

    def fit(self, x):
        return self

    def shift(self, nats):
        pass

    def over(self, change):
        return self


class Nothing:
    def __call__(self, x, *more):
        return x.square().sum(1)


LABELS = torch.arange(9) % 5
WRAPPERS = {
    Tempered: lambda energy: Tempered(energy, torch.linspace(0.1, 2, 9)),
    Sum: lambda energy: Sum((Nothing(), energy, energy), (1.0, 0.5, -2.0)),
    FixedLabels: lambda energy: FixedLabels(energy, LABELS),
    Clamped: lambda energy: Clamped(energy, torch.tensor([True, False, False]), torch.tensor([0.3, 0.0, 0.0])),
    AtNoise: lambda energy: AtNoise(energy, 0.5),
    ClassifierGuidance: lambda energy: ClassifierGuidance(energy, LABELS, strength=2.0),
    _Checked: lambda energy: _Checked(energy),
    AtPrecision: lambda energy: AtPrecision(energy, bf16=False),
    _AtTemperatures: lambda energy: _AtTemperatures(energy, (1.0, 2.0, 4.0)),
    CheckedEnergy: lambda energy: CheckedEnergy(energy),
}
ALWAYS = {_Checked: {HasGradient}, AtPrecision: {HasGradient}}  # theirs is None where the energy has none


def every(cls):
    return {cls, *(d for c in cls.__subclasses__() for d in every(c))}


def test_the_walk_finds_them():
    for package in (thalweg.energy, thalweg.sampler, thalweg.normaliser):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    assert {c for c in every(EnergyWrapper) if c.__module__.startswith("thalweg.")} - {EnergyWrapper} == set(WRAPPERS)
    assert {HasGradient, HasShape, NoiseConditional, Bipartite} < set(CAPABILITIES)
    assert all(isinstance(Everything(), c) for c in CAPABILITIES)
    assert not any(isinstance(Nothing(), c) for c in CAPABILITIES)


@pytest.mark.parametrize("cls", WRAPPERS)
def test_what_stays_true_is_there_and_nothing_else(cls):
    kept, always = set(cls.keeps), {Wraps, *ALWAYS.get(cls, ())}
    assert {c for c in CAPABILITIES if isinstance(WRAPPERS[cls](Everything()), c)} == kept | always
    assert {c for c in CAPABILITIES if isinstance(WRAPPERS[cls](Nothing()), c)} == always
    only = SimpleNamespace(shape=(3,), t_min=0.1, t_max=1.0)  # half of a capability is none
    whole = {HasShape, HasNoiseLevels}
    assert {c for c in CAPABILITIES if isinstance(WRAPPERS[cls](only), c)} == (kept & whole) | always


@pytest.mark.parametrize("cls", WRAPPERS)
@pytest.mark.parametrize("declines", [False, True])
def test_the_short_way_is_autograds(cls, declines):
    energy = Everything(declines)
    wrapped = WRAPPERS[cls](energy)
    fast, plain = energy_and_grad(wrapped, X), energy_and_grad(lambda x: wrapped(x), X)
    assert (energy.short > 0) == (not declines)
    for a, b in zip(fast, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
        assert not a.requires_grad
    assert bool((fast[1] != 0).any())


def test_what_is_forwarded_is_the_energys_own():
    energy = Everything()
    guided = ClassifierGuidance(energy, LABELS)
    assert (guided.t_min, guided.t_max, guided.shape) == (0.1, 4.0, (3,))
    assert guided.prior(7, None).shape == (7, 3)
    assert _Checked(AtPrecision(energy, bf16=False)).conditionals is energy.conditionals
    with pytest.raises(AttributeError, match="Tempered has no prior"):
        _ = Tempered(energy, 1.0).prior
    with pytest.raises(AttributeError, match="noise"):
        _ = AtNoise(energy, 1.0).noise


def real():
    torch.manual_seed(0)
    unet, joint = UNetEnergy.example(), JointUNetEnergy.example()
    for p in [*unet.parameters(), *joint.parameters()]:
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    zeros = torch.zeros(1, 8, 8)
    noise, labels = AtNoise(unet, torch.tensor(0.3)), torch.tensor(2)
    seen = torch.rand(1, 8, 8, generator=generator(0, "mask")) < 0.5
    return {
        "tempered": Tempered(noise, 0.5),
        "clamped": Clamped(Tempered(noise, torch.tensor(0.5)), seen, torch.rand(1, 8, 8)),
        "sum": Sum((noise, lambda x: x.flatten(1).square().sum(1))),
        "guided": AtNoise(ClassifierGuidance(joint, labels, strength=3.0), 0.3),
        "nested": Tempered(Clamped(Sum((noise, AtNoise(ClassifierGuidance(joint, labels), 0.3))), seen, zeros), 2),
        "checked": AtPrecision(_Checked(FrozenEnergy(Clamped(noise, seen, zeros))), bf16=False),
    }


@pytest.mark.parametrize("name", ["tempered", "clamped", "sum", "guided", "nested", "checked"])
def test_networks_keep_their_short_way(name):
    energy, x = real()[name], torch.rand(9, 1, 8, 8, generator=generator(0, "images"))
    assert energy.value_and_grad(x) is not None
    fast, plain = energy_and_grad(energy, x), energy_and_grad(lambda y: energy(y), x)
    for a, b in zip(fast, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def test_a_chain_evaluates_wrapped_layers_without_a_graph(monkeypatch):
    torch.manual_seed(0)
    net, nodes, node = MLPEnergy(shape=(3,)), [], fused._FusedLayers.apply
    mask, sampler = torch.tensor([True, False, False]), ULA(step_size=1e-2)
    for energy in (Tempered(net, 0.5), Clamped(Sum((net, Tempered(net, 0.3))), mask, torch.zeros(3))):
        nodes.clear()
        with monkeypatch.context() as patch:
            patch.setattr(fused._FusedLayers, "apply", lambda *args: nodes.append(1) or node(*args))
            fast = run_chain(sampler, energy, X, num_steps=5)
        assert len(nodes) == 1 + isinstance(energy, Clamped), "a graph for the first step alone"
        assert torch.allclose(fast, run_chain(sampler, lambda x, e=energy: e(x), X, num_steps=5), atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_chain_of_an_annealed_sampler(precision):
    """Its energy takes (y, t), and so does the short way of everything that a chain wraps it in."""
    torch.manual_seed(0)
    energy, x = UNetEnergy.example(), torch.rand(9, 1, 8, 8)

    class Plain:
        t_min, t_max = energy.t_min, energy.t_max

        def __call__(self, y, t):
            return energy(y, t)

    fast, plain = (run_chain(Heun(num_steps=3), e, x, num_steps=3, precision=precision) for e in (energy, Plain()))
    assert torch.allclose(fast, plain, atol=1e-4)


def test_a_wrapper_is_copied_and_compared_as_any_dataclass():
    energy = Tempered(MLPEnergy(), 0.5)
    assert copy.copy(energy) == energy
    twin = copy.deepcopy(energy)
    ends = [run_chain(ULA(step_size=0.1), e, torch.zeros(2, 2), num_steps=2) for e in (energy, twin)]
    assert torch.equal(*ends)
