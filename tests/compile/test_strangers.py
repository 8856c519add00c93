"""`run_chain` on whatever a user brings: the network found wherever it is, left bit for bit as it was, threads too."""

import functools
import sys
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm as hook_norm
from torch.nn.utils.parametrizations import spectral_norm

from thalweg.energy.engine import freeze as spectral
from thalweg.energy.engine.discovery import find_modules
from thalweg.energy.engine.freeze import exclusive, frozen
from thalweg.energy.engine.fused import FrozenEnergy
from thalweg.energy.wrappers import Clamped, Tempered
from thalweg.sampler.chain import run_chain
from thalweg.sampler.langevin import MALA, ULA

SAMPLER = ULA(step_size=1e-2)
X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def network(norm=lambda m: m, act=nn.SiLU) -> nn.Module:
    torch.manual_seed(0)
    first, second, last = norm(nn.Conv2d(1, 4, 3, padding=1)), norm(nn.Conv2d(4, 4, 3, padding=1)), nn.Linear(64, 1)
    return nn.Sequential(
        first, act(), nn.AvgPool2d(2), second, act(), nn.Dropout(), nn.Flatten(), norm(last), nn.Flatten(0)
    )


def state_of(root: nn.Module):
    """Modes, attributes, hooks, flags, memory and layout; and a copy of every number, also of tensors kept by hooks."""
    kept = [(m, k, v) for m in root.modules() for k, v in m.__dict__.items() if isinstance(v, torch.Tensor)]
    tensors = [*root.parameters(), *root.buffers()]
    facts = [(m.training, tuple(m.__dict__), tuple(m._forward_pre_hooks)) for m in root.modules()]
    facts += [(p.data_ptr(), p.stride(), p.requires_grad, p.grad is None) for p in tensors]
    facts += [(k, id(v), v.requires_grad) for _, k, v in kept]
    return facts, [t.detach().clone() for t in [*tensors, *(v for _, _, v in kept)]]


def assert_same(before, after):
    assert before[0] == after[0]
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))


class Model:
    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)

    def energy(self, x):
        return self.net(x)


class Slotted:
    __slots__ = ("net",)

    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)


@dataclass
class Field:
    net: nn.Module

    def __call__(self, x):
        return self.net(x)


def mutual(net):
    def one(x):
        return net(x) if x.ndim == 4 else two(x)

    def two(x):
        return one(x)

    return two


def in_function(net):
    named, listed = {"a": net}, [net]
    return lambda x: 0.5 * (named["a"](x) + next(n(x) for n in listed))


def in_class(net):
    class Local:
        def __call__(self, x):
            return net(x)

    return Local()


WAYS = {
    "field": Field,
    "object": Model,
    "slots": Slotted,
    "method": lambda net: Model(net).energy,
    "call of a class": in_class,
    "namespace": lambda net: functools.partial(lambda space, x: space.net(x), SimpleNamespace(net=net)),
    "default": lambda net: lambda x, net=net: net(x),
    "keyword": lambda net: lambda x, *, net=net: net(x),
    "containers": in_function,
    "mutual": mutual,
    "decorated": lambda net: torch.enable_grad()(lambda x: net(x)),
    "wrapped": lambda net: Clamped(Tempered(Model(net), 1.0), torch.tensor(False), torch.zeros(())),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_network_is_found_and_left_as_it_was(way):
    """Not found, its dropout would draw, and its spectral norm move at each step."""
    net = network(hook_norm)
    energy, before = WAYS[way](net), state_of(net)
    assert net in find_modules(energy)
    want = run_chain(SAMPLER, net, X, num_steps=5)
    torch.manual_seed(len(way))
    assert torch.allclose(run_chain(SAMPLER, energy, X, num_steps=5), want, atol=1e-6)
    assert_same(before, state_of(net))


NAMED, TEACHER = network(), network()


def test_what_is_only_named_is_left_alone():
    """A network behind a global name or in another function may train while a chain of this one runs."""
    net, seen = network(), []

    def elsewhere():
        return TEACHER.body

    def energy(x):
        seen.append((net.training, NAMED.training, TEACHER.training, NAMED[0].weight.requires_grad))
        NAMED(X).sum().backward()
        return net(x)

    assert find_modules(energy) == list(net.modules())
    assert find_modules(elsewhere) == []
    run_chain(SAMPLER, energy, X, num_steps=2)
    assert seen == [(False, True, True, True)] * 2
    assert NAMED[0].weight.grad is not None


def test_data_within_reach_is_not_searched():
    data = [nn.Identity() for _ in range(2000)]
    assert find_modules(lambda x: (data, sys.modules, X)) == []


NORMS = {
    "plain": lambda m: m,
    "parametrised": spectral_norm,
    "hooked": hook_norm,
    "weight norm": nn.utils.parametrizations.weight_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
}


@pytest.mark.parametrize("norm", NORMS)
def test_chains_of_several_threads_share_a_network(norm):
    net = network(NORMS[norm])
    before, found, errors = state_of(net), {}, []
    want = [run_chain(SAMPLER, net, X, num_steps=20, seed=i) for i in range(3)]
    gate = threading.Barrier(4)

    def chain(i):
        try:
            gate.wait(30)
            for _ in range(5):
                found[i] = run_chain(SAMPLER, net, X, num_steps=20, seed=i)
        except Exception as error:
            errors.append(error)

    def score():
        try:
            gate.wait(30)
            for _ in range(40):
                with frozen(net) as fixed:
                    fixed(X)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=chain, args=(i,)) for i in range(3)] + [threading.Thread(target=score)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    assert all(torch.allclose(found[i], want[i], atol=1e-5) for i in range(3))
    assert_same(before, state_of(net))


@pytest.mark.parametrize("norm", NORMS)
def test_blocks_of_one_thread_may_be_nested(norm):
    """Also blocks that do not end in the order in which they began, as those of generators."""
    net = network(NORMS[norm])
    before = state_of(net)
    with frozen(net):
        outside = state_of(net)
        with frozen(net[:4]), FrozenEnergy.of(net) as fixed:
            fixed(X)
        assert_same(outside, state_of(net))
        assert not net[0].training
    assert_same(before, state_of(net))
    first, second = frozen(net), frozen(net[:4])
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert_same(before, state_of(net))
    assert spectral._owners == {}


def test_threads_take_turns_on_what_they_share_and_on_nothing_else():
    net, other, order = network(), network(), []

    def score(part):
        with frozen(part):
            order.append("other" if part is other else "shared")

    threads = {name: threading.Thread(target=score, args=(part,)) for name, part in (("a", net[:4]), ("b", other))}
    with frozen(net), frozen(net[0]):
        for thread in threads.values():
            thread.start()
        threads["b"].join(30)
        assert order == ["other"]
        order.append("done")
    threads["a"].join(30)
    assert order == ["other", "done", "shared"]


def test_a_thread_that_fails_inside_gives_its_turn_back():
    thing = object()

    def fail():
        with pytest.raises(KeyError), exclusive([thing]), exclusive([thing]):
            raise KeyError

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join(30)
    with exclusive([thing]):
        pass
    assert spectral._owners == {}


def test_another_network_may_train_while_a_chain_runs():
    """With the folded weights in torch's own cache, which is the process's, this one would get no gradient."""
    net, other = network(spectral_norm), network(spectral_norm)
    with FrozenEnergy.of(net) as fixed:
        fixed(X)
        other(X).sum().backward()
        other(X)
        u = other[0].parametrizations.weight[0]._u.clone()
        other(X)
    assert other[0].parametrizations.weight.original.grad is not None
    assert not torch.equal(other[0].parametrizations.weight[0]._u, u)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_what_the_older_weight_norm_keeps_is_put_back():
    net = network(nn.utils.weight_norm)
    before = state_of(net)
    run_chain(SAMPLER, net, X, num_steps=2)
    assert_same(before, state_of(net))
    assert net[0].weight.requires_grad


def test_a_network_of_inference_tensors():
    with torch.inference_mode():
        net = network()
        before = state_of(net)
        end = run_chain(SAMPLER, net, X, num_steps=3)
        assert_same(before, state_of(net))
    assert torch.equal(end, run_chain(SAMPLER, network(), X, num_steps=3))


class Twice(nn.SiLU):
    """Not what its base is, by the call itself."""

    def __call__(self, x):
        return 2 * super().__call__(x)


class Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g.view(len(g), -1).view(g.shape)


class Viewed(nn.Module):
    """A way back that wants the usual layout."""

    def forward(self, x):
        return Back.apply(x)


def single_images(net):
    return lambda x: torch.stack([net(image).mean(0).square().sum() for image in x])


ENERGIES = {
    "call": lambda: network(act=Twice),
    "single images": lambda: single_images(nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.AvgPool2d(2))),
    "single image, one layer": lambda: single_images(nn.Conv2d(1, 4, 3)),
    "view on the way back": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), Viewed(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 1), nn.Flatten(0)
    ),
}


@pytest.mark.parametrize("sampler", [SAMPLER, MALA(step_size=1e-2)], ids=["ula", "mala"])
@pytest.mark.parametrize("name", ENERGIES)
def test_the_chain_is_that_of_the_plain_path(name, sampler, monkeypatch):
    energy = ENERGIES[name]()
    fast = run_chain(sampler, energy, X, num_steps=5)
    monkeypatch.setattr(FrozenEnergy, "of", frozen)
    assert torch.allclose(fast, run_chain(sampler, energy, X, num_steps=5), atol=1e-5)


def test_a_fault_of_the_way_back_is_the_users_own():
    class Broken(Viewed):
        def forward(self, x):
            y = x.tanh()
            y.register_hook(lambda g: g.view(3, -1, 7, 11))
            return y

    net = nn.Sequential(nn.Conv2d(1, 4, 3), Broken(), nn.Flatten(), nn.Linear(144, 1), nn.Flatten(0))
    before = state_of(net)
    with pytest.raises(RuntimeError, match="is invalid for input of size"):
        run_chain(SAMPLER, net, X, num_steps=2)
    assert_same(before, state_of(net))


def test_channels_that_do_not_fit_are_told_as_torch_tells_it():
    with pytest.raises(RuntimeError, match="to have 1 channels, but got 3 channels"):
        run_chain(SAMPLER, network(), torch.rand(2, 3, 8, 8), num_steps=1)


@pytest.mark.parametrize("norm", ["parametrised", "hooked"])
def test_an_interrupt_anywhere_on_the_way_in_or_out_leaves_the_network_as_it_was(norm):
    """Ctrl-C at each line of what changes a network and puts it back; lines that are the with statement's own aside."""
    net, stop = network(NORMS[norm]), 0
    before = state_of(net)
    inside = {"_evaluate", "_hold_constant", "_require_grad", "_fold", "_put_back", "undo", "give_back", "free"}
    while True:
        stop += 3
        left = [stop]

        def line(frame, event, arg, left=left):
            if event == "line" and left[0] > 0:
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
            return line

        def call(frame, event, arg, line=line):
            ours = "thalweg" in frame.f_code.co_filename and frame.f_code.co_name in inside
            return line if ours else None

        old = sys.gettrace()
        sys.settrace(call)
        try:
            run_chain(SAMPLER, net, X, num_steps=1)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(old)
        assert_same(before, state_of(net))
        assert spectral._owners == {}
        if left[0] > 0:
            break
    assert stop > 100
