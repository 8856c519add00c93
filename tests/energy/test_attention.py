"""`energy.engine.attention`: the numbers of attention, and which of torch's kernels computes it when."""

import logging
import math
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import profile

from thalweg.core.rng import generator
from thalweg.energy.engine import attention as module
from thalweg.energy.engine.attention import attention, double_backward, kernel_of, newer_flash

FUSED, MATH = "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_attention_math"


def qkv(length=7, dtype=torch.float64, grad=False):
    shape = (3, 2, 4, length, 6)
    q, k, v = torch.randn(shape, generator=generator(0, "qkv"), dtype=torch.float64).to(dtype)
    return tuple(x.detach().requires_grad_(grad) for x in (q, k, v))


def kernels(call) -> set[str]:
    """The operators of attention that a call runs."""
    with profile() as seen:
        call()
    return {event.key for event in seen.key_averages() if event.key in (FUSED, f"{FUSED}_backward", MATH)}


def by_hand(q, k, v, mask=None):
    score = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    score = score if mask is None else score.masked_fill(~mask, -math.inf)
    return score.softmax(3) @ v


def test_it_is_attention():
    q, k, v = qkv()
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])[:, None, None, :]
    for m in (None, mask):
        assert torch.allclose(attention(q, k, v, m), by_hand(q, k, v, m), rtol=0, atol=1e-12)
        with double_backward():
            assert torch.allclose(attention(q, k, v, m), by_hand(q, k, v, m), rtol=0, atol=1e-12)
    assert not torch.allclose(attention(q, k, v, mask), by_hand(q, k, v), atol=1e-3)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_kernel_is_the_one_that_is_said(dtype, masked):
    q, k, v = qkv(dtype=dtype, grad=True)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool) if masked else None
    assert kernel_of(q, k, v, mask) == "flash"
    assert kernels(lambda: attention(q, k, v, mask).sum().backward()) == {FUSED, f"{FUSED}_backward"}
    with double_backward():
        assert kernel_of(q, k, v, mask) == "math"
        assert kernels(lambda: attention(q, k, v, mask).sum().backward()) == {MATH}
    assert kernel_of(q, k, v, mask) == "flash"


def second(call, q, k, v):
    """The gradient in v of the squared gradient in q."""
    (g,) = torch.autograd.grad(call(q, k, v).square().sum(), q, create_graph=True)
    return torch.autograd.grad(g.square().sum(), v)[0]


def test_it_is_differentiated_twice_inside_the_block_only():
    q, k, v = qkv(grad=True)
    want = second(by_hand, q, k, v)
    for call in (attention, F.scaled_dot_product_attention):  # a network of the user's too
        with double_backward():
            assert torch.allclose(second(call, q, k, v), want, rtol=1e-9, atol=1e-12)
        with pytest.raises(RuntimeError, match="not implemented"):
            second(call, q, k, v)


def test_blocks_are_nested_and_end_with_an_error():
    q, k, v = qkv()
    with pytest.raises(ZeroDivisionError), double_backward(), double_backward():
        raise ZeroDivisionError
    assert kernel_of(q, k, v) == "flash"
    with double_backward():
        with double_backward():
            pass
        assert kernel_of(q, k, v) == "math"


def test_a_block_of_another_thread_that_ends_later_leaves_nothing_behind():
    q, k, v = qkv()
    entered, leave = threading.Event(), threading.Event()

    def other():
        with double_backward():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with double_backward():
        thread.start()
        assert entered.wait(10)
    assert kernel_of(q, k, v) == "math"
    leave.set()
    thread.join()
    assert kernel_of(q, k, v) == "flash"


def test_short_attention_in_bfloat16_is_computed_in_float32():
    """The result is that of float32, rounded once; without a gradient the kernel in bfloat16 is the faster one."""
    q, k, v = qkv(dtype=torch.bfloat16, grad=True)
    want = F.scaled_dot_product_attention(q.float(), k.float(), v.float()).bfloat16()
    assert torch.equal(attention(q, k, v), want)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention(q, k, v), want)
        assert kernel_of(q, k, v) == "flash"
    with torch.no_grad():
        assert torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of the compiler's own making
def test_the_compiler_traces_both_phases_whole():
    q, k, v = qkv(dtype=torch.float32, grad=True)

    def first(q, k, v):
        return attention(q, k, v).square().sum()

    def penalty(q, k, v):
        with double_backward():
            u, pull = torch.func.vjp(lambda q: attention(q, k, v).square().sum(), q)
            return pull(torch.ones_like(u))[0].square().sum()

    compiled = torch.compile(first, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(q, k, v), first(q, k, v))
    assert kernels(lambda: compiled(q, k, v).backward()) == {FUSED, f"{FUSED}_backward"}
    (found,) = torch.autograd.grad(torch.compile(penalty, fullgraph=True, backend="aot_eager")(q, k, v), v)
    assert torch.allclose(found, second(by_hand, q, k, v), rtol=1e-4, atol=1e-5)
    assert module._blocks.count == 0


class Registry:
    """A torch that lists newer kernels, of which `works` can be activated."""

    def __init__(self, monkeypatch, *, installed, works, active=None):
        self.tried, self.works = [], works
        names = {"list_flash_attention_impls": lambda: ["FA3", "FA4"], "activate_flash_attention_impl": self.activate}
        names["current_flash_attention_impl"] = lambda: active
        for name, call in names.items():
            monkeypatch.setattr(torch.nn.attention, name, call, raising=False)
        monkeypatch.setattr(module, "_installed", lambda name: name in installed)

    def activate(self, name):
        self.tried.append(name)
        if name not in self.works:
            raise RuntimeError("built for another torch")


BOTH = set(module.NEWER_FLASH.values())


@pytest.mark.parametrize(
    ("major", "given", "tried", "found"),
    [
        (8, {"installed": BOTH, "works": ["FA3", "FA4"]}, [], None),
        (9, {"installed": BOTH, "works": ["FA3", "FA4"]}, ["FA3"], "FA3"),
        (9, {"installed": BOTH, "works": ["FA4"]}, ["FA3", "FA4"], "FA4"),
        (9, {"installed": BOTH, "works": []}, ["FA3", "FA4"], None),
        (9, {"installed": set(), "works": ["FA3", "FA4"]}, [], None),
        (9, {"installed": BOTH, "works": ["FA3"], "active": "FA4"}, [], "FA4"),
        (10, {"installed": BOTH, "works": ["FA3", "FA4"]}, ["FA4"], "FA4"),
    ],
)
def test_a_newer_flash_attention_is_tried_and_never_assumed(monkeypatch, major, given, tried, found):
    registry = Registry(monkeypatch, **given)
    assert newer_flash(major) == found
    assert registry.tried == tried


def test_a_torch_without_the_choice_has_none(monkeypatch):
    for name in ("list_flash_attention_impls", "activate_flash_attention_impl", "current_flash_attention_impl"):
        monkeypatch.delattr(torch.nn.attention, name, raising=False)
    assert newer_flash(9) is None
    assert not module._installed("no_such_package.inside")


@pytest.mark.parametrize("newer", [None, "FA3"])
def test_the_order_of_a_gpu_is_logged_once(monkeypatch, caplog, newer):
    monkeypatch.setattr(module, "newer_flash", lambda major: newer)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    module._order.cache_clear()
    device = torch.device("cuda:0")
    with caplog.at_level(logging.INFO, "thalweg"), sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]):
        with module._ordered(device):
            pass
        with module._ordered(device):
            left = {name for name in ("cudnn", "flash", "mem_efficient", "math") if is_on(name)}
    module._order.cache_clear()
    assert left == {"cudnn", "math"}, "what the caller has switched off stays off"
    (line,) = [record.getMessage() for record in caplog.records if "attention" in record.getMessage()]
    assert ("flash (FA3), cudnn" if newer else "cudnn, flash, ") in line


def is_on(name):
    return getattr(torch.backends.cuda, f"{name}_sdp_enabled")()
