"""A user's own networks, as they stand: in train mode, with whatever layers. Chains and applications take the module.

The chain is compared with a plain loop over the module in evaluation mode; what the engine does not know it must leave
to autograd.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from thalweg import EnergyReranker, run_chain
from thalweg.apps.landscape.basins import descent
from thalweg.apps.landscape.paths import interpolation
from thalweg.apps.landscape.surface import energies, plane
from thalweg.energy.base import energy_and_grad
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.energy.engine.pooling import MaxPool
from thalweg.evaluate.detection import detection_table
from thalweg.sampler.langevin import MALA, ULA

SHAPE = (1, 12, 12)


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Tutorial(nn.Module):
    """3 x 3 convolutions, LeakyReLU in place, max pooling."""

    def __init__(self, norm=lambda m: m):
        super().__init__()
        self.net = nn.Sequential(
            *(norm(nn.Conv2d(1, 4, 3, padding=1)), nn.LeakyReLU(0.2, inplace=True), nn.MaxPool2d(2)),
            *(norm(nn.Conv2d(4, 6, 3, padding=1)), nn.LeakyReLU(0.2, inplace=True), nn.MaxPool2d(2)),
            *(nn.Flatten(), norm(nn.Linear(6 * 9, 1))),
        )

    def forward(self, x):
        return self.net(x).squeeze(-1)


class Residual(nn.Module):
    """Batch normalisation, dropout, functional calls, a skip."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down = nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1), nn.Dropout2d(0.3))
        self.head = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.BatchNorm1d(8), Swish()),
            *(nn.Dropout(0.5), nn.Linear(8, 1)),
        )

    def forward(self, x):
        h = self.stem(x)
        return self.head(self.down(h + self.norm(self.conv(h)))).flatten()


class Attention(nn.Module):
    """Patches that see each other."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, stride=4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 1))

    def forward(self, x):
        return self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1)).squeeze(1)


class Twice(nn.Sequential):
    """A Sequential that is not called as one."""

    def forward(self, x):
        return super().forward(x) * 2


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Twice(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), Swish())
        self.head = nn.Sequential(Twice(nn.Conv2d(4, 4, 3), nn.Tanh()), nn.Flatten(), nn.Linear(400, 1))

    def forward(self, x):
        return self.head(self.body(x) + x)[:, 0]


class Functional(nn.Module):
    """Everything by functions, pooling too, and one gradient of its own."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3, stride=2), nn.Linear(6, 1)

    def forward(self, x):
        h = F.max_pool2d(F.leaky_relu(self.one(x), 0.1), 2)
        h = torch.max_pool2d(torch.relu(self.two(h)), (2,), stride=2)
        with torch.enable_grad():
            y = h if h.requires_grad else h.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(F.max_pool2d(y**3, kernel_size=1).sum(), y, create_graph=True)
        return self.last(h.view(len(x), -1))[:, 0] + slope.flatten(1).sum(1)


class Positive(nn.Module):
    """A parametrisation of the user's own."""

    def forward(self, weight):
        return F.softplus(weight) / 10


def positive(layer):
    parametrize.register_parametrization(layer, "weight", Positive())
    return layer


NETWORKS = {
    "tutorial": Tutorial,
    "spectral norm": lambda: Tutorial(spectral_norm),
    "weight norm": lambda: Tutorial(weight_norm),
    "orthogonal": lambda: Tutorial(orthogonal),
    "own parametrisation": lambda: Tutorial(positive),
    "residual": Residual,
    "attention": Attention,
    "skipping": Skipping,
    "functional": Functional,
}


@pytest.fixture(params=NETWORKS)
def net(request):
    """The network in train mode, its statistics those of some data, and positions."""
    torch.manual_seed(0)
    net, x = NETWORKS[request.param](), torch.rand(6, *SHAPE)
    with torch.no_grad():
        for _ in range(3):
            net(x * 2 - 1)
    return net


def positions(n=4):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1))


def kept(net):
    """What nothing may change."""
    state = {name: value.clone() for name, value in net.state_dict().items()}
    return [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()], state


def assert_kept(net, before):
    modes, flags, state = kept(net)
    assert (modes, flags) == before[:2]
    assert all(torch.equal(a, b) for a, b in zip(state.values(), before[2].values(), strict=True))
    assert all(modes)


@pytest.mark.parametrize("sampler", [ULA(step_size=1e-3), MALA(step_size=1e-3)], ids=["ula", "mala"])
def test_a_chain_of_a_bare_module(net, sampler, monkeypatch):
    x, before = positions(), kept(net)
    fast = run_chain(sampler, net, x, num_steps=5)
    assert_kept(net, before)
    monkeypatch.setattr(FrozenEnergy, "of", frozen)
    plain = copy.deepcopy(net).eval()
    slow = run_chain(sampler, lambda y: plain(y), x, num_steps=5)
    assert torch.allclose(fast, slow, rtol=0, atol=1e-6)
    assert not torch.allclose(fast, x, atol=1e-3)


def test_a_chain_in_bf16_is_near_that_of_autocast(net):
    x, plain = positions(), copy.deepcopy(net).eval()
    _, exact = energy_and_grad(plain, x)
    with torch.autocast("cpu", torch.bfloat16):
        _, rough = energy_and_grad(plain, x)
    with FrozenEnergy.of(net) as fixed, torch.autocast("cpu", torch.bfloat16):
        _, found = energy_and_grad(fixed, x)
    assert found.dtype == torch.float32
    assert (found - exact).norm() <= 1.5 * (rough - exact).norm() + 0.01 * exact.norm()
    assert run_chain(ULA(step_size=1e-3), net, x, num_steps=2, precision="bf16").isfinite().all()


def test_a_reranker_takes_a_bare_module(net):
    x, before, plain = positions(20), kept(net), copy.deepcopy(net).eval()
    with torch.no_grad():
        want = plain(x)
    reranker = EnergyReranker(net, variety="none")
    assert torch.allclose(reranker.energies(x), want, atol=1e-6)
    assert torch.equal(reranker.rank(x, 3), want.argsort()[:3])
    assert_kept(net, before)


def test_landscape_and_scoring_take_a_bare_module(net):
    x, before, plain = positions(20), kept(net), copy.deepcopy(net).eval()
    with torch.no_grad():
        assert torch.allclose(energies(net, x), plain(x), atol=1e-6)
    a, b = (plane(energy, *x[:3], size=8).u for energy in (net, plain))
    assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(interpolation(net, x[0], x[1]).u, interpolation(plain, x[0], x[1]).u, atol=1e-6)
    down = descent(net, x[:3], max_move=0.1, num_steps=4)
    assert torch.allclose(down.x, descent(plain, x[:3], max_move=0.1, num_steps=4).x, atol=1e-4)
    assert bool((down.u[1:] <= down.u[:-1]).all())
    rows = [detection_table(energy, x[:10], {"far": x[10:] + 1}, x[:5])[0] for energy in (net, plain)]
    assert rows[0] == rows[1]
    assert_kept(net, before)


def test_pooling_by_functions_is_fused(monkeypatch):
    torch.manual_seed(0)
    net, calls, plain = Functional(), [], MaxPool.forward
    monkeypatch.setattr(MaxPool, "forward", lambda self, x: calls.append(x.shape) or plain(self, x))
    run_chain(ULA(step_size=1e-3), net, positions(), num_steps=2)
    assert len(calls) == 2 * 3
    for arguments in ((3, 2, 1), (2,), ((3, 2), None, (1, 0), 1, True), ([2],)):
        calls.clear()

        def energy(x, arguments=arguments):
            return F.max_pool2d(net.one(x), *arguments).square().flatten(1).sum(1)

        fast = run_chain(ULA(step_size=1e-3), energy, positions(), num_steps=2)
        assert calls
        with monkeypatch.context() as patch:
            patch.setattr(FrozenEnergy, "of", frozen)
            assert torch.allclose(fast, run_chain(ULA(step_size=1e-3), energy, positions(), num_steps=2), atol=1e-6)
    calls.clear()
    run_chain(
        ULA(step_size=1e-3),
        lambda x: F.max_pool2d(net.one(x), 2, return_indices=True)[0].flatten(1).sum(1),
        positions(),
        num_steps=1,
    )
    assert not calls, "what gives indices too is left alone"
