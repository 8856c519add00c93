"""Every objective of the package keeps the contract of `thalweg.objective.base`."""

import dataclasses
import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import nn

import thalweg.objective
from thalweg.core.errors import UserError
from thalweg.core.rng import generator
from thalweg.energy.networks.classifier import ClassifierEnergy
from thalweg.objective.base import (
    Batch,
    HasAfterRollback,
    HasLevels,
    Labelled,
    Objective,
    after_rollbacks,
    changes,
)
from thalweg.objective.contrastive.divergence import ContrastiveDivergence
from thalweg.sampler.langevin import ULA


def _objectives():
    found = []
    for info in pkgutil.walk_packages(thalweg.objective.__path__, "thalweg.objective."):
        module = importlib.import_module(info.name)
        for _, cls in inspect.getmembers(module, inspect.isclass):
            own = cls.__module__ == info.name and not getattr(cls, "_is_protocol", False)
            if own and all(callable(getattr(cls, name, None)) for name in ("init", "draw", "loss")):
                found.append(cls)
    return found


OBJECTIVES = _objectives()


class Energy(nn.Module):
    """A small smooth energy with a head bias, which no slope sees: E(x), and U(y, t) if `noisy`; three classes."""

    num_classes, t_min, t_max, num_states = 3, 0.02**2, 20.0**2, 2

    def __init__(self, dim, noisy):
        super().__init__()
        self.noisy = noisy
        self.body = nn.Linear(dim + noisy, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x, t=None):
        features = torch.cat([x, 0.25 * t.log()[:, None]], 1) if self.noisy else x
        return self.head(torch.tanh(self.body(features))).squeeze(1) + 0.5 * x.square().sum(1)

    def log_z(self):
        """No sum over states, and good enough for a step."""
        return self.head.weight.square().sum()

    def logits(self, x, t=None):
        """Three scores, for the objectives that learn classes too."""
        t = x.new_ones(len(x)) if t is None and self.noisy else t
        return self(x, *(() if t is None else (t,)))[:, None] * x.new_tensor([-1.0, 0.5, 1.0])


def build(cls):
    return cls.example() if hasattr(cls, "example") else cls()


@pytest.fixture(params=OBJECTIVES, ids=lambda cls: cls.__name__)
def objective(request):
    return build(request.param)


@pytest.fixture
def setting(objective):
    return one_step(objective)


def one_step(objective):
    """(energy, batch, state, noise) of one step."""
    torch.manual_seed(0)
    energy = Energy(3, objective.noisy)
    batch = Batch(torch.randn(16, 3, generator=generator(0, "data")), torch.arange(16) % 3)
    state = objective.init(energy, batch.x, generator(0, "init"))
    return energy, batch, state, objective.draw(state, batch, generator(0, "draw"), 0.5)


def _tensors(value):
    return all(isinstance(v, torch.Tensor) or (isinstance(v, tuple) and _tensors(v)) for v in value)


def _state_of(value):
    """Whether it is tensors, and what a loss is compiled for: true or false, chosen once in `init`."""
    return all(isinstance(v, torch.Tensor | bool) or (isinstance(v, tuple) and _state_of(v)) for v in value)


def _leaves(values):
    return [leaf for v in values for leaf in (_leaves(v) if isinstance(v, tuple) else [v])]


def _same(a, b):
    return a is b if isinstance(a, bool) else torch.equal(a, b)


def test_something_is_found():
    assert {"DenoisingScoreMatching", "ContrastiveDivergence", "JointLikelihood"} <= {
        cls.__name__ for cls in OBJECTIVES
    }


def test_hyper_parameters_are_frozen(objective):
    assert dataclasses.is_dataclass(objective)
    assert objective.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(objective))
    assert isinstance(objective.normalises, bool)
    assert isinstance(objective.noisy, bool)


def test_states_and_noise_are_tensors_and_choices(objective, setting):
    energy, batch, state, noise = setting
    _, after, metrics = objective.loss(energy, state, batch, noise)
    for s in (state, after):
        assert isinstance(s, tuple)
        assert hasattr(s, "_fields")
        assert _state_of(s)
    assert _tensors(noise)
    for name, value in metrics.items():
        assert value.ndim == 0, name
        assert not value.requires_grad, name
        assert value.isfinite(), name


def test_the_loss_gives_every_parameter_a_finite_gradient(objective, setting):
    energy, batch, state, noise = setting
    loss, _, _ = objective.loss(energy, state, batch, noise)
    assert loss.shape == ()
    assert loss.isfinite()
    loss.backward()
    for name, parameter in energy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert any(parameter.grad.abs().max() > 0 for parameter in energy.parameters())


def test_the_loss_is_pure(objective, setting):
    energy, batch, state, noise = setting
    tensors = [
        v for v in (*_leaves(state), *_leaves(noise), batch.x, *energy.parameters()) if isinstance(v, torch.Tensor)
    ]
    before = [v.clone() for v in tensors]
    first, second = (objective.loss(energy, state, batch, noise) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(_same(a, b) for a, b in zip(_leaves(first[1]), _leaves(second[1]), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


def test_one_address_draws_one_noise(objective, setting):
    _, batch, state, noise = setting
    again = objective.draw(state, batch, generator(0, "draw"), 0.5)
    assert all(torch.equal(a, b) for a, b in zip(_leaves(noise), _leaves(again), strict=True))


@pytest.mark.parametrize("times", [0, 1, 2, 3, 50])
def test_the_variant_after_a_rollback_is_pure_and_goes_on_with_the_state(objective, setting, times):
    energy, batch, state, noise = setting
    variant = after_rollbacks(objective, times)
    assert type(variant) is type(objective)
    assert variant == after_rollbacks(objective, times)
    if times == 0 or not isinstance(objective, HasAfterRollback):
        assert variant is objective
    again = variant.draw(state, batch, generator(0, "draw"), 0.5)
    loss, after, metrics = variant.loss(energy, state, batch, again)
    assert loss.isfinite()
    same = objective.loss(energy, state, batch, noise)[1]
    assert [getattr(v, "shape", v) for v in _leaves(after)] == [getattr(v, "shape", v) for v in _leaves(same)]
    assert metrics.keys() == objective.loss(energy, state, batch, noise)[2].keys()


@pytest.mark.parametrize(("own", "then"), [(0.0, 0.1), (1e-3, 0.1), (0.1, 0.1), (0.5, 0.5)])
def test_after_a_rollback_contrastive_divergence_has_an_energy_penalty_and_loses_nothing(own, then):
    cd = dataclasses.replace(ContrastiveDivergence.example(), energy_penalty=own)
    for times in (1, 2, 3):
        assert cd.after_rollback(times) == dataclasses.replace(cd, energy_penalty=then)
    changed = {"energy_penalty": (own, then)} if own != then else {}
    assert changes(cd, cd.after_rollback(1)) == changed
    assert changes(cd.after_rollback(1), cd.after_rollback(2)) == {}


def test_an_objective_keeps_what_it_declares(objective, setting):
    """Its parts are there; one over noise levels keeps those of the energy, and draws none outside."""
    energy, batch, state, noise = setting
    assert isinstance(objective, Objective)
    if isinstance(objective, Labelled) and objective.labelled:
        with pytest.raises(UserError):
            objective.loss(energy, state, Batch(batch.x), noise)
    if isinstance(objective, HasLevels):
        assert objective.noisy
        assert (float(state.t_min), float(state.t_max)) == (energy.t_min, energy.t_max)
        t = objective.levels.draw(1000, generator(0, "levels"), state)
        assert float(t.min()) >= energy.t_min * (1 - 1e-6)
        assert float(t.max()) <= energy.t_max * (1 + 1e-6)


def test_the_loss_can_be_evaluated_without_gradients(objective, setting):
    energy, batch, state, noise = setting
    with_gradients, _, _ = objective.loss(energy, state, batch, noise)
    with torch.no_grad():
        without, _, _ = objective.loss(energy, state, batch, noise)
    torch.testing.assert_close(without, with_gradients.detach())


def _one(objective, energy, batch, state=None):
    """(loss, next state, metrics, noise) of one step."""
    state = objective.init(energy, batch.x, generator(0, "init")) if state is None else state
    noise = objective.draw(state, batch, generator(0, "draw"), 0.0)
    return *objective.loss(energy, state, batch, noise), noise


@pytest.mark.parametrize("start", ["data", "persistent", "noise"])
def test_a_conditional_energy_keeps_a_label_with_each_chain(start):
    torch.manual_seed(0)
    energy = ClassifierEnergy(nn.Linear(2, 3), 3)
    x, labels = torch.randn(12, 2), torch.arange(12) % 3
    sampler = ULA(step_size=0.01)
    cd = ContrastiveDivergence(sampler=sampler, start=start, buffer_size=16, conditional=True, initial="normal")
    loss, state, _, noise = _one(cd, energy, Batch(x, labels))
    loss.backward()
    if start == "persistent":
        assert torch.equal(state.labels[noise[0]], labels)
        _, later, _, again = _one(cd, energy, Batch(x, labels.flip(0)), state)
        kept = again[0][~again[1]]
        assert len(kept) > 0
        assert torch.equal(later.labels[kept], state.labels[kept])
    with pytest.raises(ValueError, match="labels"):
        _one(cd, energy, Batch(x))


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_steps": 0},
        {"num_steps": (1, 2, 3)},
        {"num_steps": (0, 2)},
        {"num_steps": 2.5},
        {"start": "here"},
        {"initial": "t"},
        {"reinit": 1.5},
        {"low": 1.0},
        {"buffer_size": 0},
        {"energy_penalty": -1.0},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(UserError) as caught:
        ContrastiveDivergence(sampler=ULA(step_size=0.01), **wrong)
    assert str(caught.value.argument).startswith(next(iter(wrong)))
