"""`run_chain(compile=True)`: the same chain to rounding, new weights without a new compilation, nothing left behind."""

import shutil

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from thalweg.core.errors import UserError
from thalweg.energy.wrappers import Tempered
from thalweg.sampler.chain import run_chain
from thalweg.sampler.langevin import MALA

SAMPLER = MALA(step_size=1e-2)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(spectral_norm(nn.Linear(3, 8)), nn.SiLU(), nn.Dropout(), nn.Linear(8, 1), nn.Flatten(0))


def state_of(root: nn.Module):
    modules = [(m.training, tuple(m.__dict__), tuple(m._forward_pre_hooks), type(m)) for m in root.modules()]
    tensors = [*root.parameters(), *root.buffers()]
    return modules, [(t.data_ptr(), t.stride(), t.requires_grad, t.grad, t.tolist()) for t in tensors]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler's own making
def test_the_compiled_chain_is_the_chain():
    net, x = network(), torch.rand(5, 3)
    energy, graphs = Tempered(net, 2.0), torch._dynamo.utils.counters["stats"]
    first, seen = graphs["unique_graphs"], []
    for _ in range(3):
        before = state_of(net)
        fast, plain = (run_chain(SAMPLER, energy, x, num_steps=4, compile=compile) for compile in (True, False))
        assert state_of(net) == before
        assert torch.allclose(fast, plain, rtol=0, atol=1e-5)
        assert not torch.allclose(fast, x, atol=1e-3)
        seen.append((graphs["unique_graphs"], fast))
        with torch.no_grad():
            net[3].weight.mul_(-3)
    assert seen[0][0] > first, "nothing was compiled"
    assert seen[0][0] == seen[2][0], "new weights were compiled anew"
    assert not torch.allclose(seen[0][1], seen[2][1], atol=1e-4)


def test_what_compile_may_be():
    for value in ("auto", 1, None):
        with pytest.raises(UserError) as caught:
            run_chain(SAMPLER, network(), torch.rand(5, 3), num_steps=1, compile=value)
        assert caught.value.argument == "compile"
