"""A GPU that is not there: tensors that say cuda:0, keep their numbers on the CPU, and refuse what CUDA would refuse.

A function whose tensors lie on two devices fails, as does a random draw by another device's generator. CPU numbers
without a dimension may take part, and CPU indices may index, as with CUDA. What makes the host wait for the device is
recorded. As the numbers are the CPU's, results are those of the CPU, up to what another memory layout rounds.

`THALWEG_TEST_DEVICE=cuda` runs the same tests on a GPU.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

REAL = os.environ.get("THALWEG_TEST_DEVICE", "meta") == "cuda"
GPU = torch.device("cuda:0")
READS = {"item", "tolist", "nonzero", "masked_select", "unique", "equal", "bincount", "allclose", "array_equal"}
READS |= {"__bool__", "__float__", "__int__", "__index__", "__contains__", "is_nonzero", "cpu"}
TO_NUMPY = {"numpy", "__array__"}
MOVES = {"to", "cpu", "cuda", "type_as"}
JOINS = {"cat", "stack", "concat", "hstack", "vstack"}
ACROSS = {"copy_", "device", "backward", "grad"}


class OnGpu(Tensor):
    """A tensor of the simulated GPU; it says so after the block as well."""

    device = property(lambda self: GPU)


class AnyGenerator(torch.Generator):
    """A generator that says the device it was asked for, and draws a CPU's numbers."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.asked = torch.device(device)
        return made

    device = property(lambda self: self.asked)


class Gpu(TorchFunctionMode):
    """Makes and checks tensors of the simulated GPU; `reads` are the functions that made the host wait for it."""

    def __init__(self):
        super().__init__()
        self.reads: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), _name(func)
        tensors = list(_tensors((args, kwargs)))
        if name != "pin_memory" and not any(map(_on, tensors)) and not _asks(args, kwargs, name):
            return func(*args, **kwargs)
        if name == "_has_compatible_shallow_copy_type":
            return _on(args[0]) == _on(args[1])
        if name == "__deepcopy__":
            return _copied(*args)
        if name == "pin_memory":
            return args[0]
        if name in ("device", "is_cuda", "is_cpu"):
            return {"device": GPU, "is_cuda": True, "is_cpu": False}[name]
        if name in TO_NUMPY:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        there = _target(args, kwargs, name)
        _check(func, name, args, kwargs, tensors, there)
        if name in READS or (name in MOVES and not there) or (name in ("__getitem__", "__setitem__") and _mask(args)):
            self.reads.append(name)
        args, kwargs = _plain(args), _plain(kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs)
            if name in MOVES:
                found = found.clone() if found is args[0] and _on(args[0]) != there else found
            return _tagged(found) if there else _untagged(found)


def _name(func):
    name = getattr(func, "__name__", "")
    return func.__self__.__name__ if name == "__get__" else name


def _tensors(value):
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _on(value):
    return isinstance(value, OnGpu)


def _cuda(value):
    return isinstance(value, torch.device | str) and str(value).startswith("cuda")


def _asks(args, kwargs, name):
    generator = kwargs.get("generator")
    places = [kwargs.get("device"), *(args[1:] if name in MOVES else ()), getattr(generator, "device", None)]
    return name == "cuda" or any(map(_cuda, places))


def _target(args, kwargs, name):
    """Whether the result lies on the GPU."""
    if kwargs.get("device") is not None:
        return _cuda(kwargs["device"])
    if name in MOVES:
        to = [v for v in args[1:] if isinstance(v, torch.device | str | Tensor)]
        there = {"cpu": False, "cuda": True}.get(name, _on(args[0]))
        return (_on(to[0]) if isinstance(to[0], Tensor) else _cuda(to[0])) if to else there
    if name in ("copy_", "__getitem__", "__setitem__"):
        return _on(args[0])
    return any(map(_on, _tensors((args, kwargs))))


def _check(func, name, args, kwargs, tensors, there):
    generator = kwargs.get("generator")
    if generator is not None and (generator.device.type == "cuda") != there:
        raise RuntimeError(f"Expected a generator of the tensor's device, in {name}")
    if name in MOVES or name in ACROSS:
        return
    if name == "__getitem__":
        tensors = [args[0]] if _on(args[0]) else tensors
    elif name == "__setitem__":
        tensors = [args[0], *_tensors(args[2:])] if _on(args[0]) else tensors
    stray = [t for t in tensors if not _on(t) and (t.ndim or name in JOINS)]
    if stray and any(map(_on, tensors)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu, in {name}")


def _copied(x, memo):
    made = x.detach().clone().requires_grad_(x.requires_grad)
    if isinstance(x, torch.nn.Parameter):
        made._is_param = True
    memo[id(x)] = made
    return made


def _mask(args):
    return any(t.dtype == torch.bool and _on(t) for t in _tensors(args[1:2]))


def _plain(value):
    """The same with the CPU in place of the GPU."""
    if _cuda(value):
        return torch.device("cpu")
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (tuple, list) else value


def _each(change, value):
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(change, part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [_each(change, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return map(change, value) if type(value).__name__.endswith("iterator") else value


def _tagged(value):
    return _each(lambda t: t if _on(t) else t.as_subclass(OnGpu), value)


def _untagged(value):
    return _each(lambda t: t.as_subclass(Tensor) if _on(t) else t, value)


@contextmanager
def gpu() -> Iterator[list[str]]:
    """With a GPU for `find_device` and for tensors; gives the list of reads. On a machine with one: that one."""
    if REAL:
        yield []
        return
    cuda = {"is_available": lambda: True, "device_count": lambda: 1, "is_bf16_supported": lambda *_: True}
    cuda |= {"set_device": lambda *_: None, "synchronize": lambda *_: None}
    seen = mock.patch.object(torch._C, "DisableTorchFunction", nullcontext)  # the engine's calls are checked as well
    generators = mock.patch.object(torch, "Generator", AnyGenerator)
    with mock.patch.multiple(torch.cuda, **cuda), generators, seen, Gpu() as mode:
        yield mode.reads


def same(found: Tensor, wanted: Tensor) -> bool:
    """Whether a result of the device is the CPU's, up to the rounding of another memory layout, or of a real GPU."""
    found, wide = found.detach().cpu(), 1e-3 if REAL else 1e-4
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    return found.dtype == wanted.dtype and torch.allclose(found, wanted, rtol=wide, atol=wide)
