"""The step that a CUDA graph records: the same bits on buffers, and nothing of it goes through the host."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg.core.rng import generator
from thalweg.energy.conv import ConvEnergy
from thalweg.energy.mlp import MLPEnergy
from thalweg.sampler import captured, run
from thalweg.sampler.base import Info
from thalweg.sampler.captured import StaticStep, on_device, replayed, warm
from thalweg.sampler.langevin import MALA, ULA, LangevinState

SAMPLERS = {
    "ula": ULA(step_size=0.013, temperature=0.3),
    "boxed": ULA(step_size=0.013, clamp=(-0.5, 0.5), clip=0.2),
    "mala": MALA(step_size=0.013, clip=0.3),
    "tensors": MALA(step_size=torch.tensor(0.013), temperature=torch.tensor(0.7)),
}
ENERGIES = {
    "mlp": lambda: (MLPEnergy(shape=(3,), width=16), (3,)),
    "conv": lambda: (ConvEnergy(shape=(1, 8, 8), channels=(3, 4)), (1, 8, 8)),
}


def build(name):
    torch.manual_seed(0)
    energy, shape = ENERGIES[name]()
    return energy, torch.randn(5, *shape, generator=generator(0, "x"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("energy", ENERGIES)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_buffers_give_the_same_bits(sampler, energy, precision, monkeypatch):
    """With warm-up steps before the recording, as on a GPU; their traces would show in the chain."""
    energy, x = build(energy)
    want = run.run_chain(sampler, energy, x, num_steps=9, seed=4, precision=precision)
    recorded = []

    def record(step, buffers):
        warm(step, buffers)
        return lambda: recorded.append(step())

    monkeypatch.setattr(captured, "_record", record)
    monkeypatch.setattr(run, "_states", replayed)
    before = x.clone()
    got = run.run_chain(sampler, energy, x, num_steps=9, seed=4, precision=precision)
    assert len(recorded) == 8, "the first step is looked at, the others are replayed"
    assert torch.equal(got, want) or (isinstance(sampler.step_size, Tensor) and torch.allclose(got, want, atol=1e-6))
    assert torch.equal(x, before)
    half = run.run_chain(sampler, energy, x, num_steps=4, seed=4, precision=precision)
    rest = run.run_chain(sampler, energy, half, num_steps=5, seed=4, start=4, precision=precision)
    assert torch.equal(rest, got)


def test_the_step_reads_and_writes_the_same_memory_always():
    energy, x = build("mlp")
    sampler = MALA(step_size=0.01)
    state = sampler.init(energy, x)
    step = StaticStep(sampler, energy, state, sampler.draw(state, generator(0, "a")))
    where = [t.data_ptr() for t in (*step.state, *step.noise)]
    for k in range(3):
        before = step.state.x.clone()
        noise = sampler.draw(step.state, generator(0, "b", k))
        want, _ = sampler.step(energy, LangevinState(*(t.clone() for t in step.state)), noise)
        got = step(noise)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert not torch.equal(got.x, before)
    assert [t.data_ptr() for t in (*step.state, *step.noise)] == where
    assert torch.equal(state.x, x), "the state it began with is left alone"


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass(frozen=True, kw_only=True)
class Swaps:
    """A kernel whose new state is its old one's tensors, in another order."""

    def init(self, energy, x):
        return Pair(x, -x)

    def draw(self, state, generator):
        return ()

    def step(self, energy, state, noise):
        one = state.x.new_ones(len(state.x))
        return Pair(state.y, state.x), Info(one, one)


def test_a_step_that_hands_its_buffers_on_is_copied_right():
    x = torch.rand(3, 2)
    states = list(replayed(Swaps(), None, x, [generator(0, "s", k) for k in range(4)]))
    assert torch.equal(states[-1].x, x)
    assert torch.equal(states[-1].y, -x)


def test_step_size_and_temperature_are_tensors_where_the_positions_are():
    moved = on_device(SAMPLERS["mala"], torch.zeros(1))
    assert all(isinstance(v, Tensor) and v.ndim == 0 for v in (moved.step_size, moved.temperature))
    assert moved.clip == 0.3
    assert on_device(Swaps(), torch.zeros(1)) == Swaps()


class NoHost(TorchDispatchMode):
    """Refuses what waits for the device: reading a number, or a shape that depends on numbers."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.REFUSED, name
        return func(*args, **(kwargs or {}))


def walk(sampler, energy, x, precision):
    """A chain whose first step alone may look at its numbers."""
    mode, steps = NoHost(), run._states

    def guarded(*args):
        for i, state in enumerate(steps(*args)):
            if i == 0:
                mode.__enter__()
            yield state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_states", guarded)
        try:
            return run.run_chain(sampler, energy, x, num_steps=4, precision=precision)
        finally:
            mode.__exit__(None, None, None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("energy", ENERGIES)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_no_step_waits_for_the_device(sampler, energy, precision):
    energy, x = build(energy)
    assert walk(sampler, energy, x, precision).isfinite().all()


@dataclass(frozen=True, kw_only=True)
class Looks(ULA):
    """The mutant: a step that reads a number."""

    def step(self, energy, state, noise):
        state, info = super().step(energy, state, noise)
        return state._replace(x=state.x * float(info.grad_norm.max() > 0)), info


def test_a_step_that_reads_a_number_is_seen():
    energy, x = build("mlp")
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        walk(Looks(step_size=0.01), energy, x, "fp32")
