"""`engine.fused` changes nothing but time: layers against autograd, chains against the plain path, all put back."""

import copy
import gc
import inspect
import subprocess
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm as hook_norm
from torch.nn.utils.parametrizations import spectral_norm

from thalweg.energy.base import energy_and_grad
from thalweg.energy.engine import fused
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.energy.engine.im2col import PatchConv2d
from thalweg.energy.engine.known_layers import MAKERS, layer_of
from thalweg.energy.engine.layers import (
    Conv2d,
    Im2colConv2d,
    PixelSum,
    ResidualBlock,
)
from thalweg.energy.engine.pooling import AvgPool2x2
from thalweg.energy.networks.conv import ConvEnergy
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.networks.resnet import ResNetEnergy
from thalweg.energy.networks.strided import StridedEnergy
from thalweg.energy.noise_conditional.unet import UNetEnergy
from thalweg.energy.wrappers import AtNoise
from thalweg.objective.base import Batch
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.sampler import chain as run
from thalweg.sampler.langevin import MALA, ULA


class Users(nn.Module):
    """Somebody's network: functional calls, a skip, `view` where the layout must be the usual one."""

    def __init__(self, norm=lambda m: m, view: bool = False):
        super().__init__()
        self.first = norm(nn.Conv2d(1, 6, 3, padding=1))
        self.body = nn.Sequential(nn.SiLU(), norm(nn.Conv2d(6, 6, 3, padding=1)), nn.LeakyReLU(0.1), nn.AvgPool2d(2))
        self.last = norm(nn.Linear(6 * 16, 1))
        self.view = view
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        h = self.first(x)
        h = self.dropout(self.body(h + F.silu(h)))
        return self.last(h.view(len(x), -1) if self.view else h.flatten(1)).squeeze(1)


class Slope(nn.Module):
    """An energy that takes a gradient itself, so that the chain's is a second derivative."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(256, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_(True)
            (g,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        return g.flatten(1).square().sum(1)


class Count(nn.Conv2d):
    """A convolution that is not what its base is."""

    def forward(self, x):
        return 2 * super().forward(x)


ENERGIES = {
    "conv": lambda: ConvEnergy(shape=(1, 8, 8), channels=(4, 6, 8)),
    "conv-rgb": lambda: ConvEnergy(shape=(3, 9, 10), channels=(4, 6), num_outputs=3),
    "resnet": lambda: ResNetEnergy(shape=(3, 8, 8), channels=(4, 6)),
    "strided": lambda: StridedEnergy(shape=(1, 8, 8), channels=(4, 6), hidden=5, spectral=True),
    "unet": lambda: AtNoise(UNetEnergy.example(), torch.tensor(0.3)),
    "mlp": lambda: MLPEnergy(shape=(3,), width=16),
    "user": Users,
    "user-parametrised": lambda: Users(spectral_norm),
    "user-hooked": lambda: Users(hook_norm),
    "user-view": lambda: Users(hook_norm, view=True),
    "user-slope": Slope,
    "user-double": lambda: nn.Sequential(Count(1, 3, 3), nn.SiLU(), nn.Flatten(), nn.Linear(108, 1), nn.Flatten(0)),
}


def build(name):
    torch.manual_seed(3)
    energy = ENERGIES[name]()
    inner = energy.energy if isinstance(energy, AtNoise) else energy
    for p in inner.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)  # a U-Net's head begins at zero
    shape = getattr(inner, "shape", (1, 8, 8))
    return energy, torch.rand(5, *shape, generator=torch.Generator().manual_seed(1))


def state_of(energy):
    """All that a chain must leave as it was: modes, flags, memory, hooks, attributes."""
    root = fused.find_modules(energy)[0]
    modules = [(m.training, tuple(m.__dict__), tuple(m._forward_pre_hooks), type(m)) for m in root.modules()]
    tensors = [
        (n, p.data_ptr(), p.stride(), p.requires_grad, p.grad, p.clone())
        for n, p in [*root.named_parameters(), *root.named_buffers()]
    ]
    return modules, tensors


def assert_same(before, after):
    assert before[0] == after[0]
    for (*a, x), (*b, y) in zip(before[1], after[1], strict=True):
        assert a == b
        assert torch.equal(x, y)


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("sampler", [ULA(step_size=1e-3), MALA(step_size=1e-3)], ids=["ula", "mala"])
def test_the_chain_is_that_of_the_plain_path(name, sampler, monkeypatch):
    energy, x = build(name)
    before = state_of(energy)
    fast = run.run_chain(sampler, energy, x, num_steps=6)
    assert_same(before, state_of(energy))
    monkeypatch.setattr(FrozenEnergy, "of", frozen)
    plain = run.run_chain(sampler, energy, x, num_steps=6)
    assert torch.allclose(fast, plain, rtol=0, atol=1e-5)
    assert not torch.allclose(fast, x, atol=1e-3)


LAYERS = [
    PatchConv2d(1, 6, 4, stride=2, padding=1),
    nn.Conv2d(1, 5, 3, padding=1),
    nn.Conv2d(1, 5, (4, 3), stride=(2, 1), padding=(1, 2), bias=False),
    nn.Conv2d(1, 2, 3, stride=3, dilation=2),
    nn.Conv2d(1, 4, 1),
    nn.Conv2d(4, 6, 3, padding=1, groups=2),
    nn.Conv2d(4, 6, (3, 2), padding=(1, 0), dilation=(2, 1)),
    nn.Conv2d(2, 3, 1, padding=1),
    nn.Conv2d(2, 6, 4, stride=2, padding=1, bias=False),
    nn.Linear(7, 5),
    nn.Linear(7, 1, bias=False),
    nn.AvgPool2d(2),
    nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    nn.AvgPool2d(2, ceil_mode=True),
    nn.AvgPool2d(2, divisor_override=3),
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, stride=1, padding=1, dilation=(1, 2), ceil_mode=True),
    nn.Flatten(),
    PixelSum(),
    ResidualBlock(nn.Sequential(nn.SiLU(), nn.Conv2d(2, 3, 3, padding=1)), nn.Conv2d(2, 3, 1)),
    ResidualBlock(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh()), nn.Identity()),
    nn.BatchNorm1d(7).eval(),
    nn.BatchNorm2d(2, affine=False).eval(),
    nn.AdaptiveAvgPool2d(1),
    nn.Identity(),
    nn.Dropout(0.4).eval(),
    nn.Dropout2d(0.4).eval(),
    nn.SiLU(),
    nn.ReLU(),
    nn.Tanh(),
    nn.LeakyReLU(0.3),
    nn.Sigmoid(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.Softplus(beta=2.0),
]


@pytest.mark.parametrize("module", LAYERS, ids=str)
@pytest.mark.parametrize("side", [8, 9])
def test_a_layer_is_the_module(module, side):
    module = copy.deepcopy(module).double()
    shape = (
        (3, 7) if isinstance(module, nn.Linear | nn.BatchNorm1d) else (3, getattr(module, "in_channels", 2), side, side)
    )
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    layer = layer_of(module.requires_grad_(False))
    assert layer is not None
    y, kept = layer.forward(x)
    x.requires_grad_(True)
    want = module(x)
    g = torch.randn_like(want)
    assert torch.allclose(y, want, atol=1e-12)
    back = layer.backward(g, kept)
    assert back.shape == x.shape
    assert torch.allclose(back, torch.autograd.grad(want, x, g)[0], atol=1e-12)


def test_every_layer_is_tested_and_the_special_ones_are_used():
    assert {type(m) for m in LAYERS} == set(MAKERS)
    assert isinstance(layer_of(nn.Conv2d(1, 4, 3)), Im2colConv2d)
    assert isinstance(layer_of(nn.AvgPool2d(2)), AvgPool2x2)


@pytest.mark.parametrize(
    "module",
    [
        Count(1, 2, 3),
        nn.Conv2d(1, 2, 3, padding="same"),
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"),
        nn.SiLU(inplace=True),
        nn.Flatten(0),
        nn.BatchNorm2d(3),
        ResidualBlock(nn.Sequential(nn.BatchNorm2d(2)), nn.Identity()),
        nn.Bilinear(1, 1, 1),
    ],
    ids=str,
)
def test_what_is_not_known_is_left_alone(module):
    assert layer_of(module) is None


def test_what_has_hooks_is_left_alone():
    calls = []
    net = nn.Sequential(nn.Linear(2, 4), nn.SiLU(), nn.Linear(4, 1), nn.Flatten(0))
    handle = net[1].register_forward_hook(lambda *_: calls.append(1))
    run.run_chain(ULA(step_size=0.1), net, torch.zeros(3, 2), num_steps=4)
    assert len(calls) == 4
    handle.remove()
    assert layer_of(net[1]) is not None


@pytest.mark.parametrize(("name", "nodes"), [("conv", 1), ("resnet", 1), ("strided", 1), ("mlp", 1), ("user", 2)])
def test_fused_layers_are_in_use(name, nodes, monkeypatch):
    """One node a row of layers and step, or after the first call no graph; the plain form where it is due."""
    energy, x = build(name)
    calls, plain, whole = [], fused._FusedLayers.apply, name != "user"
    monkeypatch.setattr(fused._FusedLayers, "apply", lambda *args: calls.append(1) or plain(*args))
    for precision in ("fp32", "bf16"):
        run.run_chain(ULA(step_size=1e-3), energy, x, num_steps=3, precision=precision)
        assert len(calls) == (nodes if whole else 3 * nodes)
        calls.clear()
    run.run_chain(ULA(step_size=1e-3), lambda y: energy(y), x, num_steps=3)
    assert len(calls) == 3 * nodes
    calls.clear()
    with FrozenEnergy.of(energy) as fixed, torch.autocast("cpu", torch.float16):
        energy_and_grad(fixed, x)
    run.run_chain(ULA(step_size=1e-3), torch.compile(energy, backend="eager"), x, num_steps=1)
    with FrozenEnergy.of(energy) as fixed:
        torch.func.vmap(fixed)(x[:, None])
    assert calls == []


@pytest.mark.parametrize("name", ENERGIES)
def test_layers_in_bf16_are_as_near_to_the_network_as_autocast(name):
    """Through a graph and without one: the relative error is at most half as large again as that of the modules."""
    energy, x = build(name)
    with frozen(energy):
        u, g = energy_and_grad(energy, x)
        with torch.autocast("cpu", torch.bfloat16):
            modules = energy_and_grad(energy, x)
    with FrozenEnergy.of(energy) as fixed, torch.autocast("cpu", torch.bfloat16):
        ways = [energy_and_grad(fixed, x), energy_and_grad(fixed, x), energy_and_grad(lambda y: fixed(y), x)]
    allowed = [float((a.float() - b).norm() / b.norm()) for a, b in zip(modules, (u, g), strict=True)]
    for way in ways:
        assert way[1].dtype == torch.float32
        found = [float((a.float() - b).norm() / b.norm()) for a, b in zip(way, (u, g), strict=True)]
        assert all(f <= max(1.5 * a, 0.01) for f, a in zip(found, allowed, strict=True)), (found, allowed)


class Sees(nn.Module):
    """Somebody's module that notes the layout of what it is given and of the gradient that comes back."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x):
        self.seen.append(x.is_contiguous())
        x = x.clone(memory_format=torch.preserve_format)
        x.register_hook(lambda g: self.seen.append(g.is_contiguous()))
        return x


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("images", [torch.contiguous_format, torch.channels_last])
def test_fused_layers_give_the_strides_of_their_modules(channels, weights, images):
    """Also of one channel, where both layouts are contiguous and torch goes by the strides."""
    layers = [nn.Conv2d(channels, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3)]
    x = torch.rand(2, channels, 8, 8).to(memory_format=images)
    for net in (nn.Sequential(*layers), nn.Sequential(nn.Identity(), layers[0])):
        net, found = net.to(memory_format=weights), []
        for way in (FrozenEnergy.of, frozen):
            with way(lambda y, net=net: net(y)) as fixed:
                y = x.clone().requires_grad_()
                found.append(fixed(y).stride())
        assert found[0] == found[1]


@pytest.mark.parametrize("declared", [False, True])
def test_users_code_meets_the_layout_that_its_modules_give(declared, monkeypatch):
    """The usual one, or channels_last where the network has its weights so; fused layers always have channels_last."""
    seen, inside, forward = [], [], Conv2d.forward
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.SiLU())
    net = nn.Sequential(
        first, Sees(seen), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 1), nn.Flatten(0)
    )
    net = net.to(memory_format=torch.channels_last) if declared else net

    def spied(self, x):
        y, kept = forward(self, x)
        inside.append(y.is_contiguous(memory_format=torch.channels_last))
        return y, kept

    monkeypatch.setattr(Conv2d, "forward", spied)
    fast = run.run_chain(ULA(step_size=1e-2), net, torch.rand(2, 3, 12, 12), num_steps=3)
    assert inside == [True] * 9
    assert seen == [not declared] * 6
    assert fast.is_contiguous()
    seen.clear()
    energy_and_grad(net, torch.rand(2, 3, 12, 12))
    assert seen == [not declared] * 2, "the plain modules say otherwise"


class Fails(Exception):
    pass


def failing(error, where, at):
    """An energy that raises `error` in its call number `at`, forward or on the way back, and the calls so far."""
    net, calls = Users(), []

    class Back(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            if len(calls) == at:
                raise error
            return g

    def energy(x):
        calls.append(1)
        if where == "forward" and len(calls) == at:
            net(x)
            raise error
        return net(Back.apply(x) if where == "backward" else x)

    return energy, calls


@pytest.mark.parametrize("error", [RuntimeError("view size is not compatible"), KeyError("theirs"), Fails()], ids=repr)
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("sampler", [ULA(step_size=1e-3), MALA(step_size=1e-3)], ids=["ula", "mala"])
def test_the_users_own_error_comes_once_and_unchanged(error, where, at, sampler, caplog):
    energy, calls = failing(error, where, at)
    with caplog.at_level("DEBUG", logger="thalweg"), pytest.raises(type(error)) as caught:
        run.run_chain(sampler, energy, torch.rand(2, 1, 8, 8), num_steps=6)
    assert caught.value is error
    assert len(calls) == at
    assert caplog.messages == []


def test_a_view_after_a_convolution_is_taken():
    for net in (Users(view=True), Users(hook_norm, view=True), nn.Sequential(Users(view=True), nn.Identity())):
        calls = []
        handle = net.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        run.run_chain(ULA(step_size=1e-3), net, torch.rand(2, 1, 8, 8), num_steps=3)
        handle.remove()
        assert len(calls) == 3


def test_what_fused_layers_give_may_be_changed_in_place_where_a_modules_result_may():
    tail = {"flatten": nn.Flatten(), "patches": nn.Conv2d(1, 1, 1), "pool": nn.AvgPool2d(2)}
    x = torch.rand(3, 1, 8, 8)
    for last in tail.values():
        net = nn.Sequential(nn.SiLU(), nn.Conv2d(1, 1, 1), nn.SiLU(), last)

        def energy(x, net=net):
            h = net(x)
            h += 1
            return h.square().flatten(1).sum(1)

        with FrozenEnergy.of(energy) as fixed:
            fast = energy_and_grad(fixed, x)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(fast, energy_and_grad(energy, x), strict=True))


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (1, 1, 8, 8), (3, 1, 9, 8)])
def test_batches_of_every_size(shape):
    energy, _ = build("conv")
    x = torch.rand(shape)
    fast = run.run_chain(ULA(step_size=1e-3), energy, x, num_steps=3)
    assert fast.shape == shape


def test_an_image_that_does_not_fit_is_told_as_torch_tells_it():
    for net in (nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU()), nn.Sequential(nn.SiLU(), nn.Conv2d(1, 4, 3), nn.SiLU())):
        for x in (torch.rand(2, 1, 2, 2), torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8).double()):
            told = []
            for way in (FrozenEnergy.of, frozen):
                with way(net) as fixed, pytest.raises(RuntimeError) as caught:
                    fixed(x.requires_grad_())
                told.append(str(caught.value))
            assert told[0] == told[1]


@pytest.mark.parametrize("name", ["conv", "user-hooked", "user-view", "user-parametrised"])
def test_all_is_put_back_after_an_error(name):
    energy, x = build(name)
    before = state_of(energy)

    def broken(y):
        energy(y)
        raise KeyError

    with pytest.raises(KeyError):
        run.run_chain(ULA(step_size=1e-3), broken, x, num_steps=2)
    assert_same(before, state_of(energy))
    with pytest.raises((RuntimeError, ValueError)):
        run.run_chain(ULA(step_size=1e-3), energy, x[..., :3, :1], num_steps=2)
    assert_same(before, state_of(energy))


def test_weights_that_moved_are_seen_by_the_next_chain():
    energy, x = build("conv")
    first = run.run_chain(ULA(step_size=1e-2), energy, x, num_steps=2)
    with torch.no_grad():
        energy.head.weight.mul_(-30)
        energy.trunk[3].parametrizations.weight.original.add_(torch.randn(6, 4, 3, 3))
    second = run.run_chain(ULA(step_size=1e-2), energy, x, num_steps=2)
    assert not torch.allclose(first, second, atol=1e-3)


def test_second_and_repeated_derivatives():
    energy, x = build("strided")
    with FrozenEnergy.of(energy):
        y = x.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(energy(y).sum(), y, create_graph=True)
        (fast,) = torch.autograd.grad(g.square().sum(), y)
        u = energy(y)
        twice = [torch.autograd.grad(u.sum(), y, retain_graph=True)[0] for _ in range(2)]
    with frozen(energy):
        (g,) = torch.autograd.grad(energy(y).sum(), y, create_graph=True)
        (plain,) = torch.autograd.grad(g.square().sum(), y)
    assert torch.allclose(fast, plain, atol=1e-6)
    assert torch.equal(*twice)
    assert torch.allclose(twice[0], g, atol=1e-6)


@pytest.mark.parametrize("sampler", [ULA(step_size=1e-3), MALA(step_size=1e-3)], ids=["ula", "mala"])
def test_cost_and_memory_of_a_step_are_constant(sampler):
    """One evaluation a step, and as many tensors alive late in a chain as early in it."""
    energy, x = build("conv")
    calls, alive = [], {}

    def spied(y):
        calls.append(1)
        if len(calls) in (6, 7, 38, 39):
            alive[len(calls)] = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
        return energy(y)

    gc.collect()
    gc.freeze()  # what other tests left is not looked at
    try:
        run.run_chain(sampler, spied, x, num_steps=40)
    finally:
        gc.unfreeze()
    assert len(calls) == 40 + isinstance(sampler, MALA)
    assert max(alive[38], alive[39]) <= max(alive[6], alive[7])


@pytest.mark.parametrize("name", ["conv", "user-parametrised", "mlp"])
def test_persistent_training_takes_the_same_step(name, monkeypatch):
    energy, x = build(name)
    objective = ContrastiveDivergence(sampler=ULA(step_size=1e-2), num_steps=4, buffer_size=16)
    generator = torch.Generator().manual_seed(2)
    state = objective.init(energy, x, generator)
    noise = objective.draw(state, Batch(x), generator, 0.0)
    results = []
    for way in (FrozenEnergy.of, frozen):
        monkeypatch.setattr(FrozenEnergy, "of", way)
        torch.manual_seed(0)  # dropout
        mine = copy.deepcopy(energy)
        loss, replay, _ = objective.loss(mine, state, Batch(x), noise)
        loss.backward()
        results.append([loss.detach(), replay.x, *(p.grad for p in mine.parameters() if p.grad is not None)])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*results, strict=True))


def test_the_gradient_is_each_rows_own():
    energy, x = build("conv")
    with FrozenEnergy.of(energy) as fixed:
        _, whole = energy_and_grad(fixed, x)
        _, part = energy_and_grad(fixed, x[1:3])
    assert torch.allclose(whole[1:3], part, atol=1e-6)


class Shifted(MLPEnergy):
    """Overrides what `sequence` describes."""

    def forward(self, x):
        return super().forward(x) + x.square().sum(1)


def test_the_shortest_way_is_taken_only_where_it_is_the_energy():
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    for energy in (Shifted(shape=(3,)), MLPEnergy(shape=(3,), num_outputs=4), MLPEnergy(shape=(3,))):
        with frozen(energy):
            u, g = energy_and_grad(energy, x)
        with FrozenEnergy.of(energy) as fixed:
            assert fixed.value_and_grad(x) is None, "not before a call has looked at positions of this kind"
            fixed(x)
            assert (fixed.value_and_grad(x) is None) == isinstance(energy, Shifted)
            assert fixed.value_and_grad(x.double()) is None
            assert fixed.value_and_grad(x[:, :2]) is None
            both = energy_and_grad(fixed, x)
        assert torch.allclose(both[0], u, atol=1e-6)
        assert torch.allclose(both[1], g, atol=1e-6)
        assert not both[0].requires_grad
    hook = energy.net[1].register_forward_hook(lambda *_: None)
    with FrozenEnergy.of(energy) as fixed:
        fixed(x)
        assert fixed.value_and_grad(x) is None
    hook.remove()


@pytest.mark.parametrize("change", ["output", "input", "nothing"])
@pytest.mark.parametrize("first", ["tanh", "silu", "linear", "flat silu", "residual"])
@pytest.mark.parametrize("last", ["tanh", "silu", "linear", "tanh dropout", "tanh flat"])
def test_changes_in_place_are_refused_where_they_were(change, first, last):
    firsts = {"tanh": [nn.Tanh()], "silu": [nn.SiLU()], "linear": [nn.Linear(3, 3)]}
    firsts["flat silu"] = [nn.Flatten(), nn.SiLU()]
    firsts["residual"] = [ResidualBlock(nn.Sequential(nn.SiLU(), nn.Linear(3, 3)), nn.Identity())]
    lasts = {"tanh": [nn.Tanh()], "silu": [nn.SiLU()], "linear": [nn.Linear(4, 4)]}
    lasts |= {"tanh dropout": [nn.Tanh(), nn.Dropout()], "tanh flat": [nn.Tanh(), nn.Flatten()]}
    net = nn.Sequential(*firsts[first], nn.Linear(3, 4), *lasts[last])

    def energy(x):
        y = 2 * x
        h = net(y)
        (h if change == "output" else y if change == "input" else torch.zeros(1)).mul_(2)
        return h.sum(1)

    outcomes = []
    for way in (FrozenEnergy.of, frozen):
        with way(energy) as fixed:
            try:
                outcomes.append(energy_and_grad(fixed, torch.ones(2, 3))[1])
            except RuntimeError:
                outcomes.append(None)
    fast, plain = outcomes
    assert (fast is None) == (plain is None)
    assert plain is None or torch.allclose(fast, plain, atol=1e-6)


def test_layers_that_end_in_what_they_keep_are_let_go():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    gc.collect()
    gc.disable()
    with FrozenEnergy.of(net) as fixed:
        y = fixed(torch.ones(2, 3, requires_grad=True))
        gone = weakref.ref(y.grad_fn)
        del y
    gc.enable()
    assert gone() is None


def test_views_of_the_input_are_answered_as_ever():
    net = nn.Sequential(nn.Identity(), nn.Flatten())

    def energy(x):
        h = net(x)
        h += 1
        return h.square().sum(1)

    x = torch.randn(2, 3, 2)
    for way in (FrozenEnergy.of, frozen):
        with way(energy) as fixed, torch.enable_grad():
            y = (2 * x).requires_grad_(True)
            (g,) = torch.autograd.grad(fixed(2 * y).sum(), y)
        assert torch.allclose(g, 4 * (2 * y + 1))


def test_a_chain_does_not_import_the_compiler():
    code = """
import sys, torch, thalweg
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.sampler.langevin import ULA
thalweg.run_chain(ULA(step_size=0.1), MLPEnergy(), torch.zeros(2, 2), num_steps=2)
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_the_frozen_energy_is_its_energy_to_samplers():
    with FrozenEnergy.of(MLPEnergy(shape=(3,))) as fixed:
        assert fixed.shape == (3,)
        assert copy.copy(fixed).energy is fixed.energy
        with pytest.raises(AttributeError, match="conditionals"):
            _ = fixed.conditionals


def test_fused_layers_are_their_modules_and_no_more():
    """The plain form that serves second derivatives has their own modules only."""
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.SiLU(), nn.Bilinear(4, 4, 2).eval())
    parts = fused._parts(list(net))
    assert parts[0] is net[0]
    assert parts[1].args[1].args[0] == [net[1], net[2]]
    assert parts[2] is net[3]
    assert "layers" in inspect.signature(fused._parts(list(net))[1].func).parameters


def test_the_strided_network_is_evaluated_whole_its_first_layer_by_patches_too():
    energy = StridedEnergy(shape=(1, 12, 12), channels=(4, 5), hidden=6).double()
    x = torch.rand(3, 1, 12, 12, dtype=torch.float64)
    u, g = energy_and_grad(energy, x)
    with FrozenEnergy.of(energy) as fixed:
        fixed(x)
        u_fast, g_fast = fixed.value_and_grad(x)
    assert torch.allclose(u, u_fast, rtol=1e-12)
    assert torch.allclose(g, g_fast, rtol=1e-10, atol=1e-15)
