"""`run_chain(compile=...)`: the same chain, compiled where that wins and not where it fails; nothing is left behind."""

import shutil
import time

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm as hook_norm
from torch.nn.utils.parametrizations import spectral_norm

from thalweg.energy import compiled
from thalweg.energy.compose import Tempered
from thalweg.energy.conv import ConvEnergy
from thalweg.sampler.langevin import MALA, ULA
from thalweg.sampler.run import run_chain

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
SAMPLER = ULA(step_size=1e-2)


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(compiled, "verdicts", {})


def ours(caplog):
    """What this package logged, and not the compiler."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("thalweg")]


def network(norm=lambda m: m) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        norm(nn.Conv2d(1, 3, 3, padding=1)), nn.SiLU(), nn.Flatten(), norm(nn.Linear(108, 1)), nn.Flatten(0)
    )


def state_of(root: nn.Module):
    modules = [(m.training, tuple(m.__dict__), tuple(m._forward_pre_hooks), type(m)) for m in root.modules()]
    tensors = [(p.data_ptr(), p.stride(), p.requires_grad, p.grad) for p in [*root.parameters(), *root.buffers()]]
    return modules, tensors, [p.detach().clone() for p in [*root.parameters(), *root.buffers()]]


def assert_same(before, after):
    assert before[:2] == after[:2]
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))


NETWORKS = {
    "plain": network,
    "parametrised": lambda: network(spectral_norm),
    "hooked": lambda: network(hook_norm),
    "conv": lambda: ConvEnergy(shape=(1, 8, 8), channels=(3, 4)),
}


@needs_compiler
@pytest.mark.parametrize("sampler", [SAMPLER, MALA(step_size=1e-2)], ids=["ula", "mala"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_compiled_chain_is_the_chain_and_nothing_is_left(name, sampler, caplog):
    energy = NETWORKS[name]()
    x = torch.rand(3, 1, 8, 8) if name == "conv" else torch.rand(3, 1, 6, 6)
    before = state_of(energy)
    plain = run_chain(sampler, energy, x, num_steps=6)
    fast = run_chain(sampler, energy, x, num_steps=6, compile=True)
    assert_same(before, state_of(energy))
    assert ours(caplog) == []
    assert torch.allclose(fast, plain, rtol=0, atol=1e-5)
    assert not torch.allclose(fast, x, atol=1e-3)


@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_compiled_once_and_weights_that_moved_are_seen(name):
    counters, seen, energy = torch._dynamo.utils.counters["stats"], [], NETWORKS[name]()
    for _ in range(3):
        energy = (
            NETWORKS[name]() if name == "plain" else energy
        )  # a fresh one is as good, where its classes are torch's
        with torch.no_grad():
            for p in energy.parameters():
                p.add_(0.1 * (len(seen) + 1) * torch.randn_like(p))
        x = torch.rand(3, 1, *((8, 8) if name == "conv" else (6, 6)), generator=torch.Generator().manual_seed(1))
        fast = run_chain(SAMPLER, energy, x, num_steps=3, compile=True)
        assert torch.allclose(fast, run_chain(SAMPLER, energy, x, num_steps=3), atol=1e-5)
        seen.append((counters["unique_graphs"], fast))
    assert seen[0][0] == seen[2][0]
    assert not torch.allclose(seen[0][1], seen[2][1], atol=1e-4)


@needs_compiler
def test_wrappers_and_functions_compile_too(caplog):
    energy, x = network(), torch.rand(3, 1, 6, 6)
    for wrapped in (Tempered(energy, 2.0), lambda y: energy(y) + y.square().sum((1, 2, 3))):
        plain = run_chain(SAMPLER, wrapped, x, num_steps=3)
        assert torch.allclose(run_chain(SAMPLER, wrapped, x, num_steps=3, compile=True), plain, atol=1e-5)
    assert ours(caplog) == []


def test_without_a_compiler_the_chain_runs_and_one_line_says_so(caplog):
    energy, x = network(), torch.rand(2, 1, 6, 6)
    torch._dynamo.reset()
    before = state_of(energy)
    with torch._inductor.config.patch({"cpp.cxx": ("/nonexistent/g++",), "force_disable_caches": True}):
        end = run_chain(SAMPLER, energy, x, num_steps=3, compile=True)
    torch._dynamo.reset()
    assert_same(before, state_of(energy))
    assert torch.equal(end, run_chain(SAMPLER, energy, x, num_steps=3))
    (message,) = ours(caplog)
    assert message.startswith("torch.compile failed, and the chain runs without it (")
    assert "\n" not in message


def busy(seconds):
    """An energy that takes its time, and a stand-in for torch.compile that makes it take another time."""
    calls = []

    def wait(until):
        start = time.process_time()
        while time.process_time() < start + until:
            pass

    def energy(x):
        wait(0.004)
        return 0.5 * x.square().sum(1)

    def compile(_energy):
        def fast(x):
            calls.append("compiled")
            wait(seconds)
            return 0.5 * x.square().sum(1)

        return fast

    return energy, compile, calls


@pytest.mark.parametrize(("seconds", "wins"), [(0.001, True), (0.012, False)])
def test_auto_takes_what_is_faster_remembers_it_and_says_so_once(seconds, wins, monkeypatch, caplog):
    energy, compile, calls = busy(seconds)
    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(compiled, "COMPILE_SECONDS", 0.01)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    x = torch.randn(4, 2)
    caplog.set_level("INFO", logger="thalweg")
    run_chain(SAMPLER, energy, x, num_steps=2, compile="auto")
    assert calls == [], "a chain too short to repay it"
    assert ours(caplog) == []
    calls.clear()
    run_chain(SAMPLER, energy, x, num_steps=20, compile="auto")
    (message,) = ours(caplog)
    assert message.endswith(": used" if wins else ": not used")
    tried = len(calls)
    assert tried
    calls.clear()
    end = run_chain(SAMPLER, energy, x, num_steps=20, compile="auto")
    assert len(calls) == (20 if wins else 0)
    assert len(ours(caplog)) == 1
    assert torch.equal(end, run_chain(SAMPLER, energy, x, num_steps=20))


def test_a_compiled_chain_that_fails_puts_all_back_and_raises(monkeypatch, caplog):
    energy, x = network(hook_norm), torch.rand(2, 1, 6, 6)
    before, calls = state_of(energy), []

    def compile(plain):
        def breaks(y):
            calls.append(1)
            if len(calls) > 3:
                raise KeyError("late")
            return plain(y)

        return breaks

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(KeyError, match="late"):
        run_chain(SAMPLER, energy, x, num_steps=9, compile=True)
    assert_same(before, state_of(energy))
    with pytest.raises(ValueError, match="no gradient in x"):
        run_chain(SAMPLER, lambda y: energy(y).detach(), x, num_steps=9, compile="auto")
    assert_same(before, state_of(energy))
    with pytest.raises(ValueError, match='want True, False or "auto"'):
        run_chain(SAMPLER, energy, x, num_steps=1, compile="always")


def test_signatures_tell_makes_apart():
    x = torch.rand(2, 1, 6, 6)
    same = {compiled.signature(network(), x) for _ in range(2)}
    others = {
        compiled.signature(network(spectral_norm), x),
        compiled.signature(network(), x[:1]),
        compiled.signature(network(), x, True),
        compiled.signature(lambda y: y, x),
    }
    assert len(same) == 1
    assert len(same | others) == 5
