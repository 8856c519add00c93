"""The contract of every energy in `thalweg.energy`, found by walking it; then the wrappers one by one.

A class is an energy if it is named ...Energy or offers `example()`, which builds a small instance (its
defaults serve where it has none). `shape` says what one position looks like, (2,) where it is missing.
"""

import copy
import functools
import importlib
import inspect
import pkgutil
import threading

import pytest
import torch
from torch import nn

import thalweg.energy
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy import analytic
from thalweg.energy.base import HasNoiseLevels, energy_and_grad
from thalweg.energy.density.factor_mixture import MixtureOfFactorAnalyzers
from thalweg.energy.engine import freeze
from thalweg.energy.engine.discovery import find_modules
from thalweg.energy.engine.freeze import frozen
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.energy.networks.classifier import ClassifierEnergy, JointStridedEnergy
from thalweg.energy.networks.conv import ConvEnergy
from thalweg.energy.networks.mlp import MLPEnergy
from thalweg.energy.networks.resnet import ResNetEnergy
from thalweg.energy.networks.tilted_gaussian import TiltedGaussianEnergy
from thalweg.energy.noise_conditional.classifier import JointUNetEnergy
from thalweg.energy.noise_conditional.residual import ResidualEnergy
from thalweg.energy.noise_conditional.unet import UNetEnergy
from thalweg.energy.wrappers import AtNoise, Clamped, ClassifierGuidance, FixedLabels, Sum, Tempered
from thalweg.sampler.chain import run_chain
from thalweg.sampler.langevin import ULA

NOISY = (HasNoiseLevels, MixtureOfFactorAnalyzers)  # these are U(y, t)


def find_energies() -> list[type]:
    found = []
    for module in pkgutil.walk_packages(thalweg.energy.__path__, "thalweg.energy."):
        for name, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            mine = cls.__module__ == module.name and not name.startswith("_")
            if mine and cls is not FrozenEnergy and (name.endswith("Energy") or hasattr(cls, "example")):
                found.append(cls)
    # A class that another one of ours extends is abstract, unless it has an instance and an energy of its own.
    own = {"example", "forward"}
    return [c for c in found if own <= vars(c).keys() or not any(d is not c and issubclass(d, c) for d in found)]


def build(cls: type):
    """(energy of one argument, the object itself, the shape of one position)."""
    torch.manual_seed(0)
    made = cls.example() if hasattr(cls, "example") else cls()
    shape = getattr(made, "shape", None) or getattr(getattr(made, "energy", None), "shape", (2,))
    if isinstance(made, nn.Module):
        made.eval()
    return (AtNoise(made, 0.5) if isinstance(made, NOISY) else made), made, tuple(shape)


def positions(shape, n=5):
    return torch.randn(n, *shape, generator=generator(0, "x"))


ENERGIES = find_energies()


def test_the_walk_finds_them():
    assert {MLPEnergy, ConvEnergy, ResNetEnergy, ClassifierEnergy, Tempered, analytic.Gaussian} <= set(ENERGIES)
    assert {JointUNetEnergy, JointStridedEnergy, ClassifierGuidance} <= set(ENERGIES)


@pytest.mark.parametrize("cls", ENERGIES)
def test_one_finite_number_a_row(cls):
    energy, _, shape = build(cls)
    for n in (1, 5):
        u, g = energy_and_grad(energy, positions(shape, n))
        assert u.shape == (n,)
        assert u.dtype == torch.float32
        assert bool(u.isfinite().all())
        assert bool(g.isfinite().all())
    assert bool((g != 0).any()), "the gradient vanishes everywhere"


@pytest.mark.parametrize("cls", ENERGIES)
def test_rows_are_independent(cls):
    energy, _, shape = build(cls)
    x = positions(shape)
    u, g = energy_and_grad(energy, x)
    for rows in (torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2]), torch.tensor([4, 1])):
        u_rows, g_rows = energy_and_grad(energy, x[rows])
        assert torch.allclose(u_rows, u[rows], rtol=1e-5, atol=1e-6)
        assert torch.allclose(g_rows, g[rows], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cls", ENERGIES)
def test_evaluation_changes_nothing(cls):
    """No state moves, no global random number is used, the input is left alone, a copy agrees."""
    energy, made, shape = build(cls)
    x = positions(shape)
    before, state = x.clone(), torch.random.get_rng_state()
    first, second = energy(x), energy(x)
    assert torch.equal(first, second)
    assert torch.equal(x, before)
    assert torch.equal(state, torch.random.get_rng_state())
    twin = copy.deepcopy(made)
    assert torch.equal(AtNoise(twin, 0.5)(x) if isinstance(made, NOISY) else twin(x), first)


@pytest.mark.parametrize("cls", [c for c in ENERGIES if issubclass(c, nn.Module)])
def test_parameters_and_state_survive_a_round_trip(cls):
    energy, made, shape = build(cls)
    x = positions(shape)
    for p in made.parameters():
        assert p.requires_grad
    if any(True for _ in made.parameters()):
        energy(x).square().sum().backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in made.parameters())
        assert any(p.grad is not None for p in made.parameters())
    want = energy(x)
    torch.manual_seed(1)
    twin = cls.example() if hasattr(cls, "example") else cls()
    twin.load_state_dict(made.state_dict())
    twin.eval()
    assert torch.equal(AtNoise(twin, 0.5)(x) if isinstance(made, NOISY) else twin(x), want)


QUADRATIC = analytic.Gaussian((0.0, 1.0))
X = torch.tensor([[0.5, -1.0], [2.0, 3.0]])


def test_tempered():
    assert torch.allclose(Tempered(QUADRATIC, 0.25)(X), 0.25 * QUADRATIC(X))
    assert torch.allclose(Tempered(QUADRATIC, torch.tensor([1.0, 0.0]))(X), QUADRATIC(X) * torch.tensor([1.0, 0.0]))


def test_sum():
    mixture = analytic.GaussianMixture()
    assert torch.allclose(Sum((QUADRATIC, mixture))(X), QUADRATIC(X) + mixture(X))
    assert torch.allclose(Sum((QUADRATIC, mixture), (2.0, -1.0))(X), 2 * QUADRATIC(X) - mixture(X))
    for energies, weights, argument in (((QUADRATIC, mixture), (1.0,), "weights"), ((), None, "energies")):
        with pytest.raises(UserError) as caught:
            Sum(energies, weights)
        assert caught.value.argument == argument


def test_conditional_and_conditioned():
    energy = ClassifierEnergy.example()
    x, labels = positions(energy.shape, 4), torch.tensor([2, 0, 1, 1])
    each = torch.stack([energy(x, torch.full((4,), k)) for k in range(3)], 1)
    assert torch.allclose(energy(x), -torch.logsumexp(-each, 1))
    assert torch.allclose(FixedLabels(energy, labels)(x), each[torch.arange(4), labels])
    assert torch.allclose(FixedLabels(energy, torch.tensor(1))(x), each[:, 1])
    assert torch.allclose((energy(x) - each[:, 0]).exp(), energy.logits(x).softmax(1)[:, 0])
    with pytest.raises(ValueError, match="num_outputs=3"):
        ClassifierEnergy(MLPEnergy(num_outputs=3), 4)
    with pytest.raises(ValueError, match="\\(2, 4\\)"):
        ClassifierEnergy(nn.Linear(2, 3), 4)(X)
    assert ClassifierEnergy(nn.Linear(2, 3), 3)(X).shape == (2,)


@pytest.mark.parametrize("cls", [ConvEnergy, ResNetEnergy])
def test_class_scores_make_a_free_energy(cls):
    energy = cls(shape=(1, 8, 8), channels=(3,), num_outputs=4).eval()
    x = positions((1, 8, 8))
    assert torch.allclose(energy(x), -energy.outputs(x).logsumexp(1))
    assert energy(x + 1).ne(energy(x)).all()
    with pytest.raises(ValueError, match="shape="):
        cls(shape=(1, 7, 8))


IMAGES, VECTORS = (ConvEnergy, ResNetEnergy, UNetEnergy), (MLPEnergy, ResidualEnergy, TiltedGaussianEnergy)


@pytest.mark.parametrize(
    ("cls", "shape"),
    [(cls, shape) for cls in IMAGES for shape in ((8,), (8, 8), (0, 8, 8), (1, -8, 8), (1, 8.5, 8), (1, 1, 8, 8), 8)]
    + [(cls, shape) for cls in VECTORS for shape in ((), (0,), (-2,), (2.5,), (True,), (3, 4), 3)],
)
def test_a_shape_that_is_none_is_refused(cls, shape):
    with pytest.raises(ValueError, match=r"^shape=.*: must be \(") as caught:
        cls(shape=shape)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls", [*IMAGES, *VECTORS])
def test_positions_of_another_rank_are_refused(cls):
    _, energy, shape = build(cls)
    x, more = positions(shape), (torch.ones(5),) if isinstance(energy, NOISY) else ()
    for bad in (x[0], x[None], x[:, 0], x[..., None], torch.cat([x, x], 1), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"^x: must have the shape \(B, ") as caught:
            energy(bad, *more)
        assert "\n" not in str(caught.value)


def test_clamped():
    observed, values = torch.tensor([True, False]), torch.tensor([9.0, 0.0])
    clamped = Clamped(QUADRATIC, observed, values)
    put_back = torch.tensor([[9.0, -1.0], [9.0, 3.0]])
    assert torch.equal(clamped.restore(X), put_back)
    u, g = energy_and_grad(clamped, X)
    assert torch.equal(u, QUADRATIC(put_back))
    assert bool((g[:, 0] == 0).all())
    assert torch.equal(g[:, 1], energy_and_grad(QUADRATIC, put_back)[1][:, 1])
    with pytest.raises(UserError) as caught:
        Clamped(QUADRATIC, observed.float(), values)
    assert caught.value.argument == "observed"


def test_at_noise():
    seen = []
    energy = AtNoise(lambda y, t: seen.append(t) or y.sum(1) * t, torch.tensor(0.5, dtype=torch.float64))
    assert torch.equal(energy(X), 0.5 * X.sum(1))
    assert seen[0].shape == (2,)


def test_confined_begins_near_the_datas_gaussian_and_confines():
    """Without its network it is the Gaussian of the data; with any network it grows with the square."""
    x = torch.randn(4000, 2, generator=generator(0, "x")) @ torch.tensor([[2.0, 0.0], [1.0, 0.5]]) + 3
    energy = TiltedGaussianEnergy(gain=4.0).fit(x)
    want = analytic.Gaussian((3.0, 3.0), ((5.0, 0.5), (0.5, 0.25)))
    far = energy(1e4 * X)
    assert bool((far > 1e5).all())
    nn.init.zeros_(energy.tilt.net[-1].weight)
    assert torch.allclose(energy(x[:50]), want(x[:50]), atol=0.05, rtol=0.1)
    with pytest.raises(ValueError, match="x: must have the shape"):
        energy.fit(x[:, :1])


def old_style() -> nn.Module:
    layers = (
        nn.utils.spectral_norm(nn.Linear(3, 8)),
        nn.SiLU(),
        nn.utils.spectral_norm(nn.Linear(8, 1, bias=False)),
    )
    return nn.Sequential(*layers, nn.Dropout(0.5), nn.Flatten(0))


def new_style() -> nn.Module:
    norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(norm(nn.Linear(3, 8)), nn.SiLU(), norm(nn.Linear(8, 1)), nn.Dropout(0.5), nn.Flatten(0))


WRAPS = {
    "module": lambda m: m,
    "wrapper": lambda m: Sum((Tempered(m, 0.5), Tempered(m, 0.5))),
    "partial": lambda m: functools.partial(m),
    "method": lambda m: m.forward,
    "closure": lambda m: lambda x: m(x),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("make", [old_style, new_style])
def test_frozen_holds_spectral_norms_still(make, wrap):
    torch.manual_seed(0)
    module = make().train()
    energy = WRAPS[wrap](module)
    module[3].eval()  # a mode that differs from the others', to be put back as it was
    modes = [m.training for m in module.modules()]
    module[0].bias.requires_grad_(False)
    flags = [p.requires_grad for p in module.parameters()]
    state, hooks = copy.deepcopy(module.state_dict()), [len(m._forward_pre_hooks) for m in module.modules()]
    x = positions((3,))
    module.eval()
    want = energy(x)
    for m, mode in zip(module.modules(), modes, strict=True):
        m.training = mode

    def check_restored():
        assert [m.training for m in module.modules()] == modes
        assert [p.requires_grad for p in module.parameters()] == flags
        assert [len(m._forward_pre_hooks) for m in module.modules()] == hooks
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())

    with frozen(energy) as still:
        assert torch.allclose(still(x), want, rtol=1e-6)
        assert not still(x).requires_grad
    check_restored()
    run_chain(ULA(step_size=0.01), energy, x, num_steps=50)
    check_restored()
    with pytest.raises(RuntimeError, match="inside"), frozen(energy):
        raise RuntimeError("inside")
    check_restored()
    module(x).sum().backward()
    assert module[2](torch.ones(1, 8)).requires_grad


def test_frozen_computes_each_weight_once(monkeypatch):
    energy = ConvEnergy.example()
    norm = energy.trunk[0].parametrizations.weight[0]
    calls = []
    forward = norm.forward
    monkeypatch.setattr(norm, "forward", lambda w: calls.append(1) or forward(w))
    run_chain(ULA(step_size=0.01), energy, positions(energy.shape), num_steps=10)
    assert len(calls) == 1


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("make", [old_style, new_style])
def test_kept_frozen_it_is_looked_at_once(make, wrap, monkeypatch):
    module = make().eval()
    energy, x, looks = WRAPS[wrap](module), positions((3,)), []
    monkeypatch.setattr(freeze, "find_modules", lambda e: looks.append(1) or find_modules(e))
    want, hooks, state = energy(x), len(module[0]._forward_pre_hooks), copy.deepcopy(module.state_dict())
    with freeze.kept_frozen(energy):
        for _ in range(3):
            with frozen(energy) as still:
                assert still is energy
                assert torch.allclose(still(x), want, rtol=1e-6)
                assert not still(x).requires_grad
        assert len(looks) == 1
        with frozen(module[0]), frozen(energy):  # what has a module of it may have changed that
            assert torch.allclose(energy(x), want, rtol=1e-6)
        assert len(looks) == 3
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert len(module[0]._forward_pre_hooks) == hooks
    assert energy(x).requires_grad
    with frozen(energy):
        assert len(looks) == 4


def test_a_kept_energy_waits_for_another_threads_block():
    energy, order, inside, leave = new_style().eval(), [], threading.Event(), threading.Event()

    def chain():
        with frozen(energy[0]):
            inside.set()
            leave.wait(5)
            order.append("chain")

    with freeze.kept_frozen(energy):
        thread = threading.Thread(target=chain)
        thread.start()
        assert inside.wait(5)
        threading.Timer(0.1, leave.set).start()
        with frozen(energy):
            order.append("score")
        thread.join()
    assert order == ["chain", "score"]


def test_frozen_passes_a_plain_callable():
    with frozen(torch.sum) as same:
        assert same is torch.sum


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: analytic.Gaussian((0.0,), ((-1.0,),)), "positive definite"),
        (lambda: analytic.Gaussian((0.0,), ((1.0, 0.0),)), "shape"),
        (lambda: analytic.GaussianMixture(scale=0.0), "scale"),
        (lambda: analytic.GaussianMixture(weights=(1.0,)), "weights"),
        (lambda: MLPEnergy(depth=0), "depth"),
        (lambda: TiltedGaussianEnergy(gain=0.0), "gain=0.0"),
        (lambda: TiltedGaussianEnergy(gain=float("inf")), "gain=inf"),
        (lambda: TiltedGaussianEnergy(gain=float("nan")), "gain=nan"),
        (lambda: ResNetEnergy(num_blocks=0), "num_blocks"),
        (lambda: ConvEnergy(channels=()), "channels=\\(\\)"),
        (lambda: ResNetEnergy(channels=(4, 0)), "channels=\\(4, 0\\)"),
        (lambda: ConvEnergy(num_outputs=0), "num_outputs=0"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
